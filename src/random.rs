//! Numbers drawn the same way on every machine.

/// SplitMix64 ([Steele et al. 2014](https://doi.org/10.1145/2714064.2660195)).
pub(crate) struct Random(u64);

impl Random {
    /// The sequence with number `stream` of those of `seed`.
    pub(crate) fn new(seed: u64, stream: usize) -> Self {
        Random(seed ^ (stream as u64).wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// Any 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, but not including, `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }
}
