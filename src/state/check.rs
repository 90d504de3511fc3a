//! Check words: a hash over the fields of a record that do not change, so that a process that attaches the record finds stray
//! stores. Not against an attacker.

/// Any odd number with about as many ones as zeroes.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A check word in the making.
#[derive(Debug, Clone, Copy, Default)]
pub struct Check(u64);

impl Check {
    /// The same with one more word. Two sequences that differ in one word differ afterwards.
    #[must_use]
    pub fn with(self, word: u64) -> Check {
        let mixed = (self.0.rotate_left(29) ^ word).wrapping_mul(ODD);
        Check(mixed ^ mixed >> 32)
    }

    /// The check word.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the better mixed one")]
    pub fn value(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_word_and_their_order_counts() {
        let of = |words: &[u64]| words.iter().fold(Check::default(), |check, word| check.with(*word)).value();
        let words = [7, 0, u64::MAX, 1 << 40];
        let mut seen = std::collections::HashSet::from([of(&words), of(&[]), of(&[0]), of(&[0, 0]), of(&[0, 7, u64::MAX, 1 << 40])]);
        for at in 0..words.len() {
            for bit in 0..64 {
                let mut other = words;
                other[at] ^= 1 << bit;
                assert!(seen.insert(of(&other)), "bit {bit} of word {at}");
            }
        }
    }
}
