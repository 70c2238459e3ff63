//! Random numbers: the published test vectors of Philox4x32-10, and the same word per element however elements are
//! grouped.
use mol_merge::bits::Bits;
use mol_merge::draw::{ALL, Survivors, draw, philox};
use mol_merge::lanes::At;
use mol_merge::simd::Simd;

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
        assert_eq!(philox(key, counter), wanted);
    }
}

#[test]
fn an_element_draws_the_same_number_in_every_group() {
    let key = [17, 4];
    for first in [0, 16, 1 << 20, (1 << 34) - 16, 1 << 34] {
        let of_four = |i: usize| philox(key, [(i / 4) as u32, (i as u64 >> 34) as u32, 2, 0]);
        let alone: Vec<[u32; 4]> = (first..first + 32).step_by(4).map(of_four).collect();
        for start in [0, 4, 12] {
            let mut words = [[0; 4]; 5];
            draw(key, 2, first + start, &mut words);
            assert_eq!(words, alone[start / 4..start / 4 + 5]);
            draw(key, 1, first + start, &mut words);
            assert_ne!(words, alone[start / 4..start / 4 + 5]);
        }
    }
}

#[test]
fn survivors_are_those_whose_draw_is_below_the_limit() {
    let (key, model, limit) = ([3, 1], 5, ALL / 3);
    for (first, elements) in [(0, 1), (4, 63), (8, 64), (12, 65), (1020, 1500), (65_536, 1024), (40, 2049)] {
        for simd in [Simd::detect(), Simd::parse("off").expect("every processor has it")] {
            let at = first..first + elements;
            let mut bits = Bits::new(first, elements);
            simd.run(Survivors { key, model, limit, at: at.clone(), bits: &mut bits });
            for i in at {
                let word = philox(key, [(i / 4) as u32, 0, model, 0])[i % 4];
                assert_eq!(bits.lanes::<1>(At { first: i, step: 1 }), [word >> 1 < limit], "element {i}");
            }
        }
    }
}
