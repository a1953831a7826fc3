//! A small seeded generator, so that a failure can be repeated.

/// Its state, at first the seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Bytes that are noise, text or something between.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let spread = [2, 16, 256][self.below(3) as usize];
        (0..len).map(|_| self.below(spread) as u8).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).for_each(|at| items.swap(at, self.below(at as u64 + 1) as usize));
    }
}

/// Runs one case of a random test; a failure tells the seed that repeats it.
pub fn showing(seed: u64, case: impl FnOnce()) {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("it failed with seed {}", self.0);
            }
        }
    }
    let _seed = Seed(seed);
    case();
}
