"""The merge methods in float64 numpy, each as its definition reads: what every kernel of the engine is held to.

A tensor is a flat float64 array, shape (n,). A function has the name of its method in a plan and is called as
the plan says: with the tensors in its order, the base first where there is one, and the method's numbers by name,
`lambda` as `lambda_`. It may take `precision` of the arithmetic, `name` and `shape` of the tensor and `seed` of the
plan, too.

A new method goes into the file of its family; all of them are exported here.

Two rules are mol's own and not in the papers:

* TIES trims each tensor on its own (the paper trims the whole task vector at once), keeps exactly
  k = max(1, trunc(density * n)) entries, and among equal magnitudes the lowest index survives.
* Magnitudes are compared in the engine's working precision: two deltas that round to the same float32 are equal.
"""

from tests.reference.angles import *
from tests.reference.averages import *
from tests.reference.choosing import *
from tests.reference.consensus import *
from tests.reference.drawing import *
from tests.reference.election import *
from tests.reference.elementwise import *
from tests.reference.tensors import *
from tests.reference.trimming import *
