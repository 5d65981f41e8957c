//! Changed seeds, the same ones for the same number: what there is where nothing is guided by coverage.

use crate::Target;
use crate::fixtures::random::Dice;

/// Longer inputs are not made.
const MAX_BYTES: usize = 6000;
/// What is often a limit of something.
const ODD: [u8; 10] = [0, 1, 0x20, 0x2f, 0x30, 0x39, 0x7f, 0x80, 0xfe, 0xff];

/// The input of this number.
#[must_use]
pub fn input(target: &Target, seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut dice = Dice::new(number);
    let pick = |dice: &mut Dice| seeds.get(dice.below(seeds.len().max(1))).cloned();
    let mut bytes = pick(&mut dice).unwrap_or_default();
    for _ in 0..=dice.below(4) {
        change(target, &mut bytes, &mut dice, &|dice| pick(dice).unwrap_or_default());
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(
    target: &Target,
    bytes: &mut Vec<u8>,
    dice: &mut Dice,
    other: &dyn Fn(&mut Dice) -> Vec<u8>,
) {
    // One more than there are: the end is a place as well.
    let at = dice.below(bytes.len() + 1);
    let most = [1, 4, 32, 600][dice.below(4)];
    let length = 1 + dice.below(most);
    let end = (at + length).min(bytes.len());
    match dice.below(11) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = ODD[dice.below(ODD.len())];
            }
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..end)),
        5 => {
            let copied = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            bytes.splice(to..to, copied);
        }
        6 => {
            let copied = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            let end = (to + copied.len()).min(bytes.len());
            bytes.splice(to..end, copied);
        }
        7 => {
            let other = other(dice);
            let from = dice.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        8 => bytes[at..end].fill(ODD[dice.below(ODD.len())]),
        _ => {
            if let Some(count) = std::num::NonZero::new(target.words.len()) {
                let word = target.words[dice.below(count.get())].as_bytes().iter().copied();
                let end = if dice.one_in(2) { at } else { (at + word.len()).min(bytes.len()) };
                bytes.splice(at..end, word);
            }
        }
    }
}
