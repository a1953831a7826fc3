//! Keeping to a rate: a bucket that fills at that rate and never holds more than a tenth of a second's worth.

use std::time::{Duration, Instant};

/// What may be saved up.
const BURST: f64 = 0.1;

/// Bytes that may be written now; below zero, how many have to wait.
pub struct Throttle {
    rate: f64,
    saved: f64,
    last: Instant,
}

impl Throttle {
    /// `rate` bytes a second, from now on.
    pub fn new(rate: u64, now: Instant) -> Throttle {
        Throttle { rate: rate.max(1) as f64, saved: 0.0, last: now }
    }

    /// How long to wait before `bytes` are written.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let fresh = now.saturating_duration_since(self.last).as_secs_f64() * self.rate;
        self.saved = (self.saved + fresh).min(self.rate * BURST) - bytes as f64;
        self.last = now;
        Duration::try_from_secs_f64(-self.saved / self.rate).unwrap_or_default()
    }

    /// The largest write that does not exceed the burst.
    pub fn portion(rate: u64) -> usize {
        usize::try_from(rate / 10).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_whatever_the_portions() {
        for (rate, portion) in [(1000, 1), (1000, 100), (1000, 5000), (1 << 30, 1 << 20)] {
            let begun = Instant::now();
            let (mut throttle, mut now, mut taken) = (Throttle::new(rate, begun), begun, 0);
            while taken < 20 * rate {
                now += throttle.take(portion, now);
                taken += portion;
            }
            let kept = taken as f64 / (now - begun).as_secs_f64() / rate as f64;
            assert!((kept - 1.0).abs() < 0.01, "{kept} of {rate} in portions of {portion}");
        }
    }

    #[test]
    fn idleness_is_worth_a_tenth_of_a_second() {
        let begun = Instant::now();
        let mut throttle = Throttle::new(1000, begun);
        let later = begun + Duration::from_secs(60);
        assert_eq!(throttle.take(100, later), Duration::ZERO);
        assert_eq!(throttle.take(100, later), Duration::from_millis(100));
    }
}
