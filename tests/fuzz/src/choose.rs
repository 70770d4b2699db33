//! Pseudorandom choices of the mutators, from the seed that the fuzzer gives.

/// SplitMix64.
pub struct Choose(u64);

impl Choose {
    pub fn new(seed: u32) -> Self {
        Choose(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, or 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.bits() % limit as u64) as usize }
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `all`, which has some.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A number that is likely to be at the edge of something.
    pub fn edge(&mut self) -> u64 {
        const EDGES: &[u64] = &[
            0,
            1,
            2,
            3,
            4,
            7,
            8,
            16,
            64,
            65,
            127,
            128,
            255,
            256,
            1 << 15,
            1 << 16,
            (1 << 31) - 1,
            1 << 31,
            (1 << 32) - 1,
            1 << 32,
            (1 << 61) + 1,
            1 << 62,
            (1 << 63) - 1,
            1 << 63,
            u64::MAX - 7,
            u64::MAX,
        ];
        match self.below(4) {
            0 => self.bits() >> self.below(64),
            1 => self.below(20) as u64,
            _ => *self.one_of(EDGES),
        }
    }
}

/// Lets the fuzzer's own mutator change `bytes`, which may grow to `most`.
pub fn mutate_bytes(bytes: &mut Vec<u8>, most: usize) {
    let len = bytes.len().min(most.max(1));
    bytes.resize(most.max(1), 0);
    let len = libfuzzer_sys::fuzzer_mutate(bytes, len, most.max(1));
    bytes.truncate(len);
}

/// What a mutator made, at the front of the fuzzer's buffer; cut off if it is too long.
pub fn store(made: &[u8], data: &mut [u8], max_size: usize) -> usize {
    let len = made.len().min(max_size).min(data.len());
    data[..len].copy_from_slice(&made[..len]);
    len
}
