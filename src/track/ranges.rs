//! Sets of addresses as sorted, disjoint ranges.

/// A range [start, end) of addresses.
pub type Range = (u64, u64);

/// A set of addresses: sorted ranges that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The set of all addresses in `ranges`, which may come in any order and overlap.
    pub fn of(mut ranges: Vec<Range>) -> Ranges {
        ranges.retain(|range| range.0 < range.1);
        ranges.sort_unstable();
        let mut set = Ranges::default();
        ranges.into_iter().for_each(|range| set.push(range));
        set
    }

    /// Adds a range that does not start before the last one.
    pub fn push(&mut self, (start, end): Range) {
        match self.0.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => self.0.push((start, end)),
        }
    }

    /// The ranges, ascending.
    pub fn as_slice(&self) -> &[Range] {
        &self.0
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes the set covers.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }

    /// Each range as (start, length).
    pub fn lengths(&self) -> Vec<Range> {
        self.0.iter().map(|&(start, end)| (start, end - start)).collect()
    }

    /// Addresses in either set.
    pub fn union(&self, other: &Ranges) -> Ranges {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            _ => Ranges::of([self.as_slice(), other.as_slice()].concat()),
        }
    }

    /// Addresses in both sets.
    pub fn intersect(&self, other: &Ranges) -> Ranges {
        let mut both = Ranges::default();
        let (mut a, mut b) = (0, 0);
        while let (Some(x), Some(y)) = (self.0.get(a), other.0.get(b)) {
            let (start, end) = (x.0.max(y.0), x.1.min(y.1));
            if start < end {
                both.push((start, end));
            }
            if x.1 < y.1 {
                a += 1;
            } else {
                b += 1;
            }
        }
        both
    }

    /// Addresses in this set and not in the other.
    pub fn minus(&self, other: &Ranges) -> Ranges {
        let mut rest = Ranges::default();
        let mut b = 0;
        for &(mut start, end) in &self.0 {
            while other.0.get(b).is_some_and(|cut| cut.1 <= start) {
                b += 1;
            }
            let mut at = b;
            while let Some(&(from, to)) = other.0.get(at).filter(|cut| cut.0 < end) {
                if start < from {
                    rest.push((start, from));
                }
                start = start.max(to);
                at += 1;
            }
            if start < end {
                rest.push((start, end));
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every subset pattern of a few addresses, compared with bit sets.
    #[test]
    fn sets_behave_as_bits_do() {
        let set = |bits: u32| Ranges::of((0..8).filter(|bit| bits >> bit & 1 == 1).map(|bit| (bit, bit + 1)).collect());
        for a in 0u32..256 {
            for b in 0u32..256 {
                assert_eq!(set(a).union(&set(b)), set(a | b));
                assert_eq!(set(a).intersect(&set(b)), set(a & b));
                assert_eq!(set(a).minus(&set(b)), set(a & !b));
            }
            assert_eq!(set(a).bytes(), u64::from(a.count_ones()));
        }
    }

    #[test]
    fn overlaps_are_joined_and_empty_ranges_dropped() {
        let set = Ranges::of(vec![(30, 40), (10, 20), (15, 25), (50, 50)]);
        assert_eq!(set.as_slice(), [(10, 25), (30, 40)]);
    }
}
