//! /proc/PID/timens_offsets: how far the clocks of a time namespace are from the machine's.

/// Offsets of a time namespace in nanoseconds.
pub struct Offsets(Vec<(String, i64)>);

impl Offsets {
    /// The offset of `clock`, "monotonic" or "boottime".
    pub fn get(&self, clock: &str) -> i64 {
        self.0.iter().find(|(name, _)| name == clock).map_or(0, |(_, offset)| *offset)
    }
}

/// Parses the file.
pub fn parse(text: &str) -> Offsets {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, seconds, nanos) = (words.next()?, words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
        Some((name.to_owned(), seconds * 1_000_000_000 + nanos))
    };
    Offsets(text.lines().filter_map(parse).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn offsets_are_understood() {
        let offsets = super::parse("monotonic         -1  500000000\nboottime  7 0\n");
        assert_eq!((offsets.get("monotonic"), offsets.get("boottime"), offsets.get("other")), (-500_000_000, 7_000_000_000, 0));
    }
}
