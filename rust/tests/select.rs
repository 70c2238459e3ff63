//! The search for the k-th largest key compared with a sort, for any sample.
use mol_merge::sweep::search::{COLLECT, Search};

const TOP: i64 = (1 << 31) - 1;

/// Counts and collects as a sweep does.
fn sweep(keys: &[i64], pivots: &[i64]) -> (Vec<usize>, Option<Vec<i64>>) {
    let above = pivots.iter().map(|pivot| keys.iter().filter(|key| *key > pivot).count()).collect();
    let [.., low, high] = *pivots else { return (above, Some(Vec::new())) };
    let between: Vec<i64> = keys.iter().copied().filter(|key| low < *key && *key <= high).collect();
    (above, (between.len() <= COLLECT).then_some(between))
}

/// Answers a search from all keys until it is done.
fn solve(keys: &[i64], k: usize, sample: Vec<i64>) -> (i64, usize, usize) {
    let mut search = Search::new(keys.len(), k, TOP, sample);
    for sweeps in 1.. {
        let pivots = search.pivots();
        let (above, between) = sweep(keys, &pivots);
        if let Some((key, equal)) = search.learn(&pivots, &above, between).expect("the keys stand still") {
            return (key, equal, sweeps);
        }
    }
    unreachable!()
}

fn check(keys: &[i64], sample: &[i64]) -> usize {
    let mut sorted = keys.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let n = keys.len();
    let mut most = 0;
    for k in [1, 2, n / 1000 + 1, n / 3, n / 2, n - 1, n] {
        let (key, equal, sweeps) = solve(keys, k, sample.to_vec());
        assert_eq!(key, sorted[k - 1], "k = {k} of {n}");
        assert_eq!(equal, k - sorted.iter().filter(|other| **other > key).count(), "k = {k} of {n}");
        most = most.max(sweeps);
    }
    most
}

fn hash(i: usize) -> i64 {
    (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(34) as i64
}

#[test]
fn spread_keys_take_few_sweeps() {
    let keys: Vec<i64> = (0..3 * COLLECT).map(hash).collect();
    let sample: Vec<i64> = keys.iter().copied().step_by(7).collect();
    assert!(check(&keys, &sample) <= 2);
}

#[test]
fn few_distinct_keys_with_huge_groups() {
    let keys: Vec<i64> = (0..3 * COLLECT).map(|i| hash(i) % 5 * 1000).collect();
    let sample: Vec<i64> = keys.iter().copied().step_by(11).collect();
    check(&keys, &sample);
    check(&vec![0; 2 * COLLECT + 1], &[0; 9]);
}

#[test]
fn a_sample_that_says_nothing_only_costs_sweeps() {
    let keys: Vec<i64> = (0..2 * COLLECT + 3).map(hash).collect();
    for sample in [vec![0], vec![TOP - 1], vec![0, TOP - 1], vec![hash(5); 100]] {
        assert!(check(&keys, &sample) <= 40);
    }
}

#[test]
fn most_searches_take_one_sweep() {
    let spread: Vec<i64> = (0..8 * COLLECT).map(hash).collect();
    // One in fifty has each key, as in deltas on a grid; a sweep isolates one of them.
    let grid: Vec<i64> = (0..16 * COLLECT).map(|i| hash(i) % 50).collect();
    for (keys, limit) in [(spread, 1), (grid, 3)] {
        let sample: Vec<i64> = keys.iter().copied().step_by(keys.len() >> 16).collect();
        let ranks = (1..20).map(|twentieth| keys.len() / 20 * twentieth);
        let sweeps: Vec<usize> = ranks.map(|k| solve(&keys, k, sample.clone()).2).collect();
        assert!(sweeps.iter().filter(|sweeps| **sweeps <= limit).count() >= 18, "{sweeps:?}");
    }
}

#[test]
fn the_keys_around_a_share_leave_few_in_between() {
    for zeros in [0, 1, 4, 9] {
        let keys: Vec<i64> = (0..8 * COLLECT).map(|i| if i % 10 < zeros { 0 } else { 1 + hash(i) }).collect();
        for share in [0.01, 0.5, 0.99] {
            let wanted = |not_zero: usize| (not_zero as f64 * share) as usize;
            let mut sample: Vec<i64> = keys.iter().copied().step_by(17).collect();
            let pivots = Search::pivots_of_part(&mut sample, keys.len(), TOP, wanted);
            let (above, between) = sweep(&keys, &pivots);
            let rank = wanted(above[0]);
            assert!(pivots[0] == 0 && above[2] < rank && rank <= above[1], "{share} of {zeros}");
            assert!(between.is_some_and(|between| between.len() < COLLECT / 8), "{share} of {zeros}");
        }
    }
    assert_eq!(Search::pivots_of_part(&mut [], 9, TOP, |k| k), [0, TOP]);
    assert_eq!(Search::pivots_of_part(&mut [0; 100], 999_999, TOP, |k| k), [0, -1, 0]);
}

#[test]
fn small_tensors_are_collected_at_once() {
    for n in [1, 2, 3, 1000, COLLECT] {
        let keys: Vec<i64> = (0..n).map(|i| hash(i) % 7).collect();
        assert_eq!(Search::new(n, 1, TOP, Vec::new()).pivots(), [-1, TOP]);
        for k in (1..=n).step_by(n.div_ceil(20)) {
            assert_eq!(solve(&keys, k, Vec::new()).2, 1, "sweeps for k = {k} of {n}");
        }
    }
}

#[test]
fn answers_of_data_that_change_end_a_search() {
    for seed in 0..2000 {
        let mut next = seed;
        let mut draw = |n: usize| {
            next += 1;
            hash(next * 7919 + seed) as usize % n
        };
        let n = 3 * COLLECT;
        let mut search = Search::new(n, 1 + draw(n), TOP, (0..100).map(hash).collect());
        let mut sweeps = 0;
        loop {
            sweeps += 1;
            assert!(sweeps < 1000, "seed {seed} does not end");
            let pivots = search.pivots();
            let above: Vec<_> = pivots.iter().map(|_| draw(n + 1)).collect();
            let keys = (draw(2) == 0).then(|| (0..draw(COLLECT)).map(hash).collect());
            match search.learn(&pivots, &above, keys) {
                // Either the inconsistency is detected, or the search ends with some key.
                Err(_) | Ok(Some(_)) => break,
                Ok(None) => {}
            }
        }
    }
}
