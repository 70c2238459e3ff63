//! Random numbers: the published test vectors of Philox4x32-10, and the same word per element however elements are
//! grouped.
use mol_merge::draw::{draw, philox};
use mol_merge::lanes::At;

#[test]
fn philox_gives_the_published_numbers() {
    for (counter, key, wanted) in [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ] {
        assert_eq!(philox(key, counter.map(|word| [word])).map(|[word]| word), wanted);
    }
}

#[test]
fn an_element_draws_the_same_number_in_every_group() {
    let key = [17, 4];
    for first in [0, 16, 1 << 20, (1 << 34) - 16, 1 << 34, 3, 65_537] {
        let alone: Vec<u32> = (first..first + 32).map(|i| draw::<1>(key, 2, At { first: i, step: 1 })[0]).collect();
        assert_eq!(draw::<16>(key, 2, At { first, step: 1 })[..], alone[..16]);
        let even: Vec<u32> = alone.iter().copied().step_by(2).collect();
        assert_eq!(draw::<16>(key, 2, At { first, step: 2 })[..], even);
        assert_ne!(draw::<16>(key, 1, At { first, step: 1 })[..], alone[..16]);
    }
}
