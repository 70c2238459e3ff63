"""What docs/evidence.md says around its tables."""

from __future__ import annotations

from typing import Final

HEAD: Final = """# Evidence: does it help?

`make evidence` wrote this page. Measured are merges and fusions of the small family in `examples/family`: a base of
2.6 million parameters that was trained on documentation for programmers, and three experts that start from it, for
sources in Python, the King James Bible (kjv) and WordNet's definitions. The base has seen no text of these domains.

```sh
make evidence               # every row that is not measured yet; this page
make evidence ROWS=quick    # two rows again, and whether they agree with what is committed
```

Every figure is bits per byte of test text by `mol.evaluate` (lower is better), in windows of 256 tokens, of documents
cut to 4,000 characters. No 13 words in a row of it are in train or validation text. `switching` is 60 documents of
three passages of 250 characters, one of each domain. `general` is the base's own kind of text, which the mean leaves
out. MFLOP/token counts what a forward runs of rows of 256 tokens; tokens/s is tokens per CPU second in one thread; MB
is all weights in memory, in float32. A seed is that of the experts' training, of random merges and of what is trained
on them; the error is that of the mean over seeds; without one there is one seed. tokens/s are the most of all seeds, on
a machine with other work, so that equal models differ by a third. Each result, with seed, commit, settings and
losses per document, is in `benches/evidence/results`.

![mean bits per byte of every row](evidence/rows.svg)

![mean bits per byte against operations per token](evidence/cost.svg)"""

SINGLES: Final = """The oracle is given, for each document, the model of these that is best on it. The base with the
blocks of an expert shows how much of what the expert learned is in its blocks, and how much in its embeddings."""

MIXTURES: Final = """All three experts run, and their predictions are mixed (`MoLMixture`): with equal weights, by
Bayes' rule from how well each predicted the tokens so far, or by a router that was trained for 80 steps."""

GOALS: Final = """Differences are taken seed by seed, and a goal is met if its difference is more than two standard
errors beyond it."""

MERGES: Final = """All treat the three experts alike. Where a method has scales, settings were tried on validation
text, and the best was measured on test text, once. Methods without scales, and `slerp` (two experts half and half,
then a third of the third), were merged once. `nearswap` and `arcee_fusion` take one other model and `nuslerp` two, so
they are not here."""

FUSIONS: Final = """A host runs the blocks of the three experts behind linear adapters, and a router weighs them, by
the mean of the tokens so far unless something else is said: in each of its layers, or, in a chain, the four blocks of
each expert in a row behind one router. Dense rows run all experts on all tokens. Top-1 gives each token to one expert,
which sees the tokens that were given to it (`dispatch="token"`), and so costs about what one model does. Adapters start
as the identity, which is what experts of one base need, or fitted (`adapter_init="lstsq"`) to what the host's own
blocks do.

The host is the base, or the merge by task arithmetic, whose embeddings, which are its head too, have a part of what the
experts learned. `MoLTrainer` trained all on the experts' train text: in the base for 80 steps of 2,048 tokens with
adapters at a rate of 1e-3, in the merge for 240 at 1e-2, or where it is said for 80. Routers, which see the domain of
each row (`domain_loss_coeff=0.1`), have 1e-2. Rows that choose start with all experts and narrow to one or two over 40
steps.

A control has the same adapters, routers, steps and rates over the host's own blocks three times: what it gains is due
to training adapters, not to the experts. LoRA has as many parameters, the same texts, steps and rates, and no domains.
In the merge rates of 1e-3, 3e-3 and 1e-2 were tried for 80 steps, for the top-1 chain and for LoRA; 1e-2 was best for
both on validation text. Distilling rows from the expert of their domain gained 0.005 there, and is not used.

BAR (attention and embeddings merged statically, the experts' MLPs routed) is a fusion in the merge whose experts are
made by `mol-merge`: the merge with the MLPs of one expert, copied by `rules`. Its adapters stay the identity, so that a
layer is h + attention(h) + the sum over experts of weight x MLP(h + attention(h)), and routers alone are trained, for
80 steps. mol runs attention once per expert there, and the operations count it so; once would do.

`dispatch="sequence"` has no row: it chooses by the first 16 tokens, so it does not predict these, and `mol.evaluate`
refuses to score it."""

WHY: Final = """### Why some are not met, and what else the rows say

- Merges: what the experts learned adds up in the same weights. At the scale that is best for all three, the mean is
  about as far from the oracle as from the base. No method that was tried changes that.
- Soups: at a falling rate the last checkpoints hardly differ, and their mean is no better than the last one.
- The host: what an expert learned is in its embeddings, which are its head, too, and a fusion has those of its host.
  The base with the blocks of one expert is a row of the first table: a fusion in the base that always chose right would
  be about that good in its domain without training. The merge has a part of all of them, and so is the better host: on
  validation text, the blocks of each domain's own expert, untrained, give 2.362 in the base and 2.190 in the merge.
- Fitted adapters: they make the experts' blocks do what the host's do, and so take away what these learned. Between
  relatives the identity is the better start; fitted adapters are for models that are none.
- Documents that switch domain: routers by the mean of the tokens so far are slow to follow, and so is a posterior.
  Equal weights are best there.
- A mixture by posterior trains nothing, and is as good as the oracle on documents of one domain, for the operations and
  the memory of three models."""

SOUPS: Final = """Two runs of the python expert: as shipped, with a learning rate that falls to a tenth, and one at a
constant rate. Of checkpoints 20 steps apart the last two, three, four or six are averaged by `merge_method: average`,
as many as are best on validation text of python."""
