//! Random numbers: the published test vectors of Philox4x32-7, and the same draw per element however elements are
//! grouped.
use mol_merge::bits::{Bits, WORD};
use mol_merge::draw::{Draws, Survivors, limit, philox};
use mol_merge::lanes::At;
use mol_merge::simd::Simd;

/// Computes the words of one counter.
fn words(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [a, b] = philox(key, counter.map(u64::from));
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

/// Computes the upper half of a draw.
fn upper(draws: Draws, element: usize) -> u16 {
    let counter = element / 64 * 8 + element % 32 / 4;
    let word = words(draws.key, [counter as u32, (counter >> 32) as u32, draws.model, 0]);
    (word[element % 64 / 32 * 2 + element % 4 / 2] >> (16 * (element % 2))) as u16
}

/// Computes the lower half of a draw.
fn lower(draws: Draws, element: usize) -> u16 {
    words(draws.key, [element as u32, (element >> 32) as u32, draws.model, 1])[0] as u16
}

#[test]
fn philox_gives_the_published_numbers() {
    for (counter, key, wanted) in [
        ([0; 4], [0; 2], [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a],
        ),
    ] {
        assert_eq!(words(key, counter), wanted);
    }
}

#[test]
fn an_element_draws_the_same_number_in_every_group() {
    let draws = Draws { key: [17, 4], model: 2 };
    for first in [0, 64, 1 << 20, (1 << 35) - 64, 1 << 35] {
        let mut groups = [[[0; 2]; WORD]; 3];
        draws.upper(first, &mut groups);
        let found: Vec<u16> = groups.as_flattened().iter().map(|draw| u16::from_le_bytes(*draw)).collect();
        assert_eq!(found, (first..first + 3 * WORD).map(|i| upper(draws, i)).collect::<Vec<_>>());
        let one = groups[1];
        draws.upper(first + WORD, &mut groups[..1]);
        assert_eq!(groups[0], one);
        Draws { model: 1, ..draws }.upper(first + WORD, &mut groups[..1]);
        assert_ne!(groups[0], one);
    }
}

#[test]
fn survivors_are_those_whose_draw_is_below_the_limit() {
    let draws = Draws { key: [3, 1], model: 5 };
    let drawn = |i| u32::from(upper(draws, i)) << 16 | u32::from(lower(draws, i));
    // Limits with the upper half of a draw: its lower half decides.
    let tied = [drawn(65_536), drawn(65_537) + 1, drawn(64) & 0xffff_0000, 0, 1, u32::MAX];
    for limit in tied.into_iter().chain([limit(1.0 / 3.0)]) {
        for (first, elements) in [(0, 1), (64, 63), (128, 64), (64, 65), (65_536, 1024), (0, 1500), (128, 4097)] {
            for simd in [Simd::detect(), Simd::parse("off").expect("every processor has it")] {
                let at = first..first + elements;
                let mut bits = Bits::new(first, elements);
                simd.run(Survivors { draws, limit, at: at.clone(), bits: &mut bits });
                for i in at {
                    let wanted = drawn(i) < limit;
                    assert_eq!(bits.lanes::<1>(At { first: i, step: 1 }), [wanted], "element {i}");
                    assert_eq!(draws.is_below(upper(draws, i).to_le_bytes(), i, limit), wanted);
                }
            }
        }
    }
}

#[test]
fn limits_are_probabilities() {
    assert_eq!([0.0, 0.5, 2_f64.powi(-32), 1.0 - 2_f64.powi(-40)].map(limit), [0, 1 << 31, 1, u32::MAX]);
}
