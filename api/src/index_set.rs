//! [`IndexSet`]: a set of task indexes, kept as intervals.
//!
//! A Job's indexes mostly succeed in runs, so memory and every operation follow the number of runs
//! and not the number of indexes. Text form is `0-17,19`; a ledger chunk is a base64 bitmap.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Most intervals that [`IndexSet::from_str`] reads: far above what 16 KiB of status text can hold.
const PARSE_INTERVALS_MAX: usize = 100_000;

/// A set of `u32` indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IndexSet {
    /// First index to last index (inclusive). Disjoint, never adjacent.
    runs: BTreeMap<u32, u32>,
    /// Number of indexes, so that `len` is O(1).
    len: u64,
}

/// Why a text or a bitmap is no set of indexes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IndexSetError(String);

impl IndexSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of `0..n`.
    pub fn below(n: u32) -> Self {
        let mut set = Self::new();
        if n > 0 {
            set.insert_range(0, n - 1);
        }
        set
    }

    /// Number of indexes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        self.runs
            .range(..=index)
            .next_back()
            .is_some_and(|(_, &last)| index <= last)
    }

    /// Adds one index; false if it was there.
    pub fn insert(&mut self, index: u32) -> bool {
        let before = self.len;
        self.insert_range(index, index);
        self.len != before
    }

    /// Adds `first..=last`; nothing when `first > last`.
    pub fn insert_range(&mut self, first: u32, last: u32) {
        if first > last {
            return;
        }
        let (mut from, mut to) = (first, last);
        // A run that begins before and reaches (or touches) the new one.
        if let Some((&s, &e)) = self.runs.range(..=first).next_back()
            && e.saturating_add(1) >= first
        {
            if e >= last {
                return;
            }
            from = s;
            to = to.max(e);
            self.runs.remove(&s);
            self.len -= u64::from(e - s) + 1;
        }
        // Runs that begin inside or right after it.
        while let Some((&s, &e)) = self.runs.range(from..=to.saturating_add(1)).next() {
            to = to.max(e);
            self.runs.remove(&s);
            self.len -= u64::from(e - s) + 1;
        }
        self.runs.insert(from, to);
        self.len += u64::from(to - from) + 1;
    }

    /// Removes one index; false if it was not there.
    pub fn remove(&mut self, index: u32) -> bool {
        let Some((&s, &e)) = self.runs.range(..=index).next_back() else {
            return false;
        };
        if index > e {
            return false;
        }
        self.runs.remove(&s);
        if s < index {
            self.runs.insert(s, index - 1);
        }
        if index < e {
            self.runs.insert(index + 1, e);
        }
        self.len -= 1;
        true
    }

    /// The lowest index.
    pub fn first(&self) -> Option<u32> {
        self.runs.keys().next().copied()
    }

    /// The highest index.
    pub fn last(&self) -> Option<u32> {
        self.runs.values().next_back().copied()
    }

    /// All indexes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|(&s, &e)| s..=e)
    }

    /// Runs as `(first, last)`, both inclusive, ascending.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = (u32, u32)> + '_ {
        self.runs.iter().map(|(&s, &e)| (s, e))
    }

    /// Indexes that are in either set.
    pub fn union(&self, other: &IndexSet) -> IndexSet {
        let (mut big, small) = if self.runs.len() >= other.runs.len() {
            (self.clone(), other)
        } else {
            (other.clone(), self)
        };
        for (s, e) in small.runs() {
            big.insert_range(s, e);
        }
        big
    }

    /// Indexes of `0..n` that are not in the set.
    pub fn complement(&self, n: u32) -> IndexSet {
        let mut out = IndexSet::new();
        let mut next = 0u32;
        for (s, e) in self.runs() {
            if s >= n {
                break;
            }
            if s > next {
                out.insert_range(next, s - 1);
            }
            next = match e.checked_add(1) {
                Some(v) => v,
                None => return out,
            };
        }
        if next < n {
            out.insert_range(next, n - 1);
        }
        out
    }

    /// Indexes of this set that are not in `other`.
    pub fn difference(&self, other: &IndexSet) -> IndexSet {
        let mut out = IndexSet::new();
        for (s, e) in self.runs() {
            let mut next = Some(s);
            // The run of `other` that covers `s`, then those that begin inside.
            let before = other.runs.range(..s).next_back().map(|(&a, &b)| (a, b));
            let inside = other.runs.range(s..=e).map(|(&a, &b)| (a, b));
            for (a, b) in before.into_iter().chain(inside) {
                let Some(n) = next else { break };
                if b < n {
                    continue;
                }
                if a > n {
                    out.insert_range(n, a - 1);
                }
                next = b.checked_add(1);
            }
            if let Some(n) = next {
                out.insert_range(n, e);
            }
        }
        out
    }

    /// Indexes that are in both sets.
    pub fn intersection(&self, other: &IndexSet) -> IndexSet {
        self.difference(&self.difference(other))
    }

    /// The text form, cut before `max` bytes would be passed; true if something was left out.
    pub fn to_text(&self, max: usize) -> (String, bool) {
        let mut out = String::new();
        for (s, e) in self.runs() {
            let piece = if s == e {
                s.to_string()
            } else {
                format!("{s}-{e}")
            };
            let comma = usize::from(!out.is_empty());
            if out.len() + comma + piece.len() > max {
                return (out, true);
            }
            if comma == 1 {
                out.push(',');
            }
            out.push_str(&piece);
        }
        (out, false)
    }

    /// The base64 bitmap of indexes `base..base + width`: bit `i` of byte `i / 8`, least significant
    /// first, trailing zero bytes cut. This is the form of the JobLedger's fields.
    pub fn to_bitmap(&self, base: u32, width: u32) -> String {
        let mut bytes = vec![0u8; (width as usize).div_ceil(8)];
        let end = u64::from(base) + u64::from(width);
        for (s, e) in self.runs() {
            if u64::from(s) >= end {
                break;
            }
            let (from, to) = (
                u64::from(s.max(base)),
                u64::from(e).min(end.saturating_sub(1)),
            );
            for i in from..=to {
                let bit = (i - u64::from(base)) as usize;
                bytes[bit / 8] |= 1 << (bit % 8);
            }
        }
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
        STANDARD.encode(&bytes[..used])
    }

    /// Reads [`IndexSet::to_bitmap`]'s form; bits at or beyond `width` are an error.
    pub fn from_bitmap(text: &str, base: u32, width: u32) -> Result<Self, IndexSetError> {
        let limit = (width as usize).div_ceil(8);
        if text.len() > limit.div_ceil(3) * 4 {
            return Err(IndexSetError(format!(
                "bitmap is longer than {width} indexes need"
            )));
        }
        let bytes = STANDARD
            .decode(text)
            .map_err(|e| IndexSetError(format!("bitmap is not base64: {e}")))?;
        let mut set = IndexSet::new();
        let mut run: Option<(u32, u32)> = None;
        for (i, byte) in bytes.iter().enumerate() {
            for bit in 0..8 {
                if byte & (1 << bit) == 0 {
                    continue;
                }
                let offset = i as u64 * 8 + bit;
                let index = u64::from(base) + offset;
                let (Ok(index), true) = (u32::try_from(index), offset < u64::from(width)) else {
                    return Err(IndexSetError(format!(
                        "bitmap holds bit {offset}, beyond {width}"
                    )));
                };
                run = match run {
                    Some((s, e)) if e + 1 == index => Some((s, index)),
                    other => {
                        if let Some((s, e)) = other {
                            set.insert_range(s, e);
                        }
                        Some((index, index))
                    }
                };
            }
        }
        if let Some((s, e)) = run {
            set.insert_range(s, e);
        }
        Ok(set)
    }
}

impl fmt::Display for IndexSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(usize::MAX).0)
    }
}

impl FromStr for IndexSet {
    type Err = IndexSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut set = IndexSet::new();
        if text.is_empty() {
            return Ok(set);
        }
        for (i, piece) in text.split(',').enumerate() {
            if i >= PARSE_INTERVALS_MAX {
                return Err(IndexSetError(format!(
                    "more than {PARSE_INTERVALS_MAX} ranges of indexes"
                )));
            }
            let bad = || {
                let cut: String = piece.chars().take(32).collect();
                IndexSetError(format!(
                    "{cut:?} is no index or range of indexes such as 3 or 0-17"
                ))
            };
            let number = |s: &str| -> Result<u32, IndexSetError> {
                if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(bad());
                }
                s.parse().map_err(|_| bad())
            };
            let (first, last) = match piece.split_once('-') {
                Some((a, b)) => (number(a)?, number(b)?),
                None => (number(piece)?, number(piece)?),
            };
            if first > last {
                return Err(bad());
            }
            set.insert_range(first, last);
        }
        Ok(set)
    }
}

impl FromIterator<u32> for IndexSet {
    fn from_iter<I: IntoIterator<Item = u32>>(iter: I) -> Self {
        let mut set = IndexSet::new();
        for i in iter {
            set.insert(i);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_form() {
        let set: IndexSet = "0-17,19".parse().unwrap();
        assert_eq!((set.len(), set.to_string().as_str()), (19, "0-17,19"));
        assert_eq!("".parse::<IndexSet>().unwrap(), IndexSet::new());
        assert_eq!("3,1-2".parse::<IndexSet>().unwrap().to_string(), "1-3");
        for bad in ["x", "1-", "-1", "2-1", "1,,2", "4294967296", "1 ", "+1"] {
            assert!(bad.parse::<IndexSet>().is_err(), "{bad}");
        }
        assert_eq!(
            "0,2,4,6".parse::<IndexSet>().unwrap().to_text(4),
            ("0,2".into(), true)
        );
    }

    #[test]
    fn bounds_of_u32() {
        let mut set = IndexSet::new();
        set.insert(u32::MAX);
        set.insert(u32::MAX - 1);
        set.insert_range(0, u32::MAX);
        assert_eq!(set.len(), 1 << 32);
        assert!(set.complement(u32::MAX).is_empty());
        assert!(set.remove(u32::MAX));
        assert_eq!(set.last(), Some(u32::MAX - 1));
    }

    #[test]
    fn bitmap_refuses_what_does_not_fit() {
        assert_eq!(IndexSet::below(9).to_bitmap(0, 4096), "/wE=");
        assert!(IndexSet::from_bitmap("/w8=", 0, 10).is_err());
        assert!(IndexSet::from_bitmap("!", 0, 16).is_err());
        assert!(IndexSet::from_bitmap(&"A".repeat(4096), 0, 4096).is_err());
    }

    fn model(set: &BTreeSet<u32>) -> IndexSet {
        set.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn behaves_like_a_plain_set(ops in proptest::collection::vec((any::<bool>(), 0u32..200, 0u32..12), 0..120)) {
            let (mut plain, mut set) = (BTreeSet::new(), IndexSet::new());
            for (add, at, width) in ops {
                if add {
                    set.insert_range(at, at + width);
                    plain.extend(at..=at + width);
                } else {
                    prop_assert_eq!(set.remove(at), plain.remove(&at));
                }
                prop_assert_eq!(set.len(), plain.len() as u64);
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.to_string().parse::<IndexSet>().unwrap(), set.clone());
            prop_assert_eq!(IndexSet::from_bitmap(&set.to_bitmap(0, 256), 0, 256).unwrap(), set.clone());
            let rest = set.complement(250);
            prop_assert!(rest.iter().all(|i| !set.contains(i)));
            prop_assert_eq!(set.union(&rest), IndexSet::below(250));
        }

        #[test]
        fn algebra(a in proptest::collection::btree_set(0u32..150, 0..80), b in proptest::collection::btree_set(0u32..150, 0..80)) {
            let (x, y) = (model(&a), model(&b));
            prop_assert_eq!(x.union(&y), model(&a.union(&b).copied().collect()));
            prop_assert_eq!(x.difference(&y), model(&a.difference(&b).copied().collect()));
            prop_assert_eq!(x.intersection(&y), model(&a.intersection(&b).copied().collect()));
        }
    }
}
