//! Random numbers that a seed tells.

/// A small random number generator (xorshift64*), so that a seed tells the whole run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number of 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// A number of the exponential distribution with mean 1: the time between arrivals that do not depend on each other.
    pub fn exponential(&mut self) -> f64 {
        // The upper 53 bits, from above 0 to 1.
        let uniform = ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -uniform.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_distribution_has_mean_1_and_no_negative_number() {
        let mut random = Random(1);
        let numbers: Vec<f64> = (0..100_000).map(|_| random.exponential()).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        assert!((0.98..1.02).contains(&mean) && numbers.iter().all(|number| *number >= 0.0), "{mean}");
    }
}
