//! A histogram whose bins do not depend on the data, so that histograms add up whatever they were made of.
//!
//! The bin of a value is its sign, its exponent and the nine highest bits of its mantissa: the upper 18 bits of an f32.
//! Bins are thus at most 2^-9 of their values wide, and ascend as the values do:
//!
//! ```text
//! magnitude(x) = bits(|x|) >> 14          number(x) = magnitude(x), negated if x < 0
//! ```
//!
//! Bin 0 holds both zeros and all magnitudes below 2^-135. Of each bin there are the number of values and the sum of their
//! lower 14 bits, the *remainders*: both are integers, so sums and means are exact and come out the same in any order.
//!
//! Counting takes one addition a value: a bin is a word of 64 bits, its count in the upper 25, its remainders in the lower
//! 39. Neighbouring bins, those of one sign and exponent, are allocated together once they have some values; all others,
//! and what would overflow, are in a map. A value that takes 28 exponents to either side of zero takes 170 KiB.

use crate::simd::dispatched;
use std::collections::BTreeMap;

/// Highest bits of the mantissa that tell bins apart.
pub(super) const MANTISSA_BITS: u32 = 9;

/// Lower bits of an f32, which do not matter for the bin.
const REMAINDER_BITS: u32 = 23 - MANTISSA_BITS;

/// The largest remainder.
pub(super) const LARGEST_REMAINDER: u64 = (1 << REMAINDER_BITS) - 1;

/// Bins of one sign and exponent.
const PAGE: usize = 1 << MANTISSA_BITS;

/// Signs and exponents.
const PAGES: usize = 1 << 9;

/// The first number of a bin of infinities and NaN.
pub(super) const FIRST_INFINITE: i32 = 0xff << MANTISSA_BITS;

/// Where the count of a word begins: `2^25` remainders fit below.
const COUNT_SHIFT: u32 = 39;

/// Values in a window. Words that begin one with less than as many can take them.
const WINDOW: u64 = 1 << 24;

/// Place of a page that there is not; a word's place beyond it is out of bounds, too.
const ABSENT: u32 = 1 << 30;

/// Values or bins that make a page worth its memory.
const PAGE_WORTH: u8 = 128;

/// Values that are looked through for zeros at a time.
const CHUNK: usize = 1024;

/// Zeros are counted on their own where there is one in as many values: additions to a single word wait for each other.
const MANY_ZEROS: usize = 16;

/// What is known of the values of a bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) count: u64,
    /// The sum of the lower bits of the values.
    pub(super) remainders: u64,
}

impl Tally {
    fn of_word(word: u64) -> Self {
        Tally { count: word >> COUNT_SHIFT, remainders: word & ((1 << COUNT_SHIFT) - 1) }
    }

    fn add(&mut self, other: Tally) {
        self.count += other.count;
        self.remainders += other.remainders;
    }
}

/// Counts of values by bin.
#[derive(Clone)]
pub(super) struct Histogram {
    /// Where the page of each sign and exponent begins in `words`.
    starts: [u32; PAGES],
    words: Vec<u64>,
    /// Bins outside of pages, and counts too large for a word.
    others: BTreeMap<i32, Tally>,
    /// Values counted in `others` by page, up to [`PAGE_WORTH`].
    hits: [u8; PAGES],
    /// Values that words may still take.
    window: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { starts: [ABSENT; PAGES], words: Vec::new(), others: BTreeMap::new(), hits: [0; PAGES], window: WINDOW }
    }
}

impl Histogram {
    /// Counts `values`, which are finite.
    pub(super) fn count(&mut self, values: &[f32]) {
        let mut others = [0.0; CHUNK];
        let mut zeros = 0;
        for chunk in values.chunks(CHUNK) {
            if count_zeros(chunk) > CHUNK / MANY_ZEROS {
                let kept = without_zeros(chunk, &mut others);
                zeros += (chunk.len() - kept) as u64;
                self.count_each(&others[..kept]);
            } else {
                self.count_each(chunk);
            }
        }
        if zeros > 0 {
            self.add(0, Tally { count: zeros, remainders: 0 });
        }
    }

    fn count_each(&mut self, mut values: &[f32]) {
        while let Some(first) = values.first() {
            if self.window == 0 {
                self.make_room();
            }
            let run = values.len().min(usize::try_from(self.window).unwrap_or(usize::MAX));
            let counted = count_in_pages(&self.starts, &mut self.words, &values[..run]);
            self.window -= counted as u64;
            if counted == 0 {
                self.count_outside(*first);
            }
            values = &values[counted.max(1)..];
        }
    }

    /// Counts a value that has no page yet.
    #[cold]
    fn count_outside(&mut self, value: f32) {
        let bits = value.to_bits();
        let page = (bits >> 23) as usize;
        let (number, remainders) = (number_of(bits), u64::from(bits) & LARGEST_REMAINDER);
        self.add_outside(number, Tally { count: 1, remainders });
        self.hits[page] += 1;
        if self.hits[page] >= PAGE_WORTH {
            self.make_page(page);
        }
    }

    fn add_outside(&mut self, number: i32, tally: Tally) {
        self.others.entry(number).or_default().add(tally);
    }

    fn make_page(&mut self, page: usize) {
        self.starts[page] = self.words.len() as u32;
        self.words.reserve_exact(PAGE);
        self.words.resize(self.words.len() + PAGE, 0);
        let numbers = (0..PAGE).map(|place| number_in(page, place)).filter(|number| page_of(*number) == page);
        for number in numbers {
            if let Some(tally) = self.others.remove(&number) {
                self.add(number, tally);
            }
        }
    }

    /// Takes large counts out of words, so that another window fits.
    fn make_room(&mut self) {
        for page in 0..PAGES {
            let start = self.starts[page] as usize;
            for place in 0..PAGE {
                match self.words.get_mut(start + place) {
                    Some(word) if *word >> COUNT_SHIFT >= WINDOW => {
                        let tally = Tally::of_word(std::mem::take(word));
                        self.add_outside(number_in(page, place), tally);
                    }
                    _ => {}
                }
            }
        }
        self.window = WINDOW;
    }

    /// Adds to a bin.
    fn add(&mut self, number: i32, tally: Tally) {
        let place = self.starts[page_of(number)] as usize + (number.unsigned_abs() as usize & (PAGE - 1));
        match self.words.get_mut(place) {
            Some(word) if (*word >> COUNT_SHIFT) + tally.count < WINDOW => *word += tally.count << COUNT_SHIFT | tally.remainders,
            _ => self.add_outside(number, tally),
        }
    }

    /// Adds tallies of bins, in ascending order of their numbers. Counts together stay below 2^48.
    pub(super) fn add_all(&mut self, tallies: &[(i32, Tally)]) {
        for page in tallies.chunk_by(|a, b| page_of(a.0) == page_of(b.0)) {
            let index = page_of(page[0].0);
            if self.starts[index] == ABSENT && page.len() >= usize::from(PAGE_WORTH) {
                self.make_page(index);
            }
            page.iter().for_each(|(number, tally)| self.add(*number, *tally));
        }
    }

    /// The tallies of all bins that have values, in ascending order of bin numbers.
    pub(super) fn tallies(&self) -> Vec<(i32, Tally)> {
        let mut tallies: Vec<(i32, Tally)> = self.others.iter().map(|(number, tally)| (*number, *tally)).collect();
        for (page, start) in self.starts.iter().enumerate().filter(|(_, start)| **start != ABSENT) {
            let words = &self.words[*start as usize..*start as usize + PAGE];
            let filled = words.iter().enumerate().filter(|(_, word)| **word != 0);
            tallies.extend(filled.map(|(place, word)| (number_in(page, place), Tally::of_word(*word))));
        }
        tallies.sort_unstable_by_key(|(number, _)| *number);
        tallies.dedup_by(|(number, tally), (kept, sum)| {
            let same = number == kept;
            if same {
                sum.add(*tally);
            }
            same
        });
        if let Ok(zero) = tallies.binary_search_by_key(&0, |(number, _)| *number) {
            // Of either sign, so that their sum would say nothing.
            tallies[zero].1.remainders = 0;
        }
        tallies
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        // A map's nodes are two thirds full, and have some pointers.
        size_of::<Self>() + self.words.capacity() * 8 + self.others.len() * (size_of::<(i32, Tally)>() * 3 / 2 + 4)
    }
}

dispatched! {
    /// How many of `values` are zeros, of either sign.
    fn count_zeros(values: &[f32]) -> usize {
        values.iter().map(|value| u32::from(*value == 0.0)).sum::<u32>() as usize
    }
}

/// Moves what is not a zero to the front of `others`; returns how many that are.
fn without_zeros(values: &[f32], others: &mut [f32; CHUNK]) -> usize {
    let mut kept = 0;
    for value in values {
        others[kept % CHUNK] = *value;
        kept += usize::from(*value != 0.0);
    }
    kept
}

/// Counts values up to the first that has no page; returns how many that were.
fn count_in_pages(starts: &[u32; PAGES], words: &mut [u64], values: &[f32]) -> usize {
    for (i, value) in values.iter().enumerate() {
        let bits = value.to_bits();
        let place = starts[(bits >> 23) as usize] + (bits >> REMAINDER_BITS & (PAGE as u32 - 1));
        let Some(word) = words.get_mut(place as usize) else { return i };
        *word += 1 << COUNT_SHIFT | u64::from(bits) & LARGEST_REMAINDER;
    }
    values.len()
}

/// The bin of the f32 with these bits.
pub(super) fn number_of(bits: u32) -> i32 {
    let magnitude = (bits << 1 >> (1 + REMAINDER_BITS)) as i32;
    if bits >> 31 == 0 { magnitude } else { -magnitude }
}

/// The smallest magnitude of a bin, and the smallest beyond it.
pub(super) fn magnitudes_of(number: i32) -> (f32, f32) {
    let bits = number.unsigned_abs() << REMAINDER_BITS;
    (f32::from_bits(bits), f32::from_bits(bits + (1 << REMAINDER_BITS)))
}

/// The sum of the values of a bin, exact but for its rounding to f64.
pub(super) fn sum_of(number: i32, tally: Tally) -> f64 {
    let bits = number.unsigned_abs() << REMAINDER_BITS;
    let (exponent, mantissa) = (bits >> 23, bits & ((1 << 23) - 1));
    let mantissa = if exponent == 0 { mantissa } else { mantissa | 1 << 23 };
    let units = u128::from(tally.count) * u128::from(mantissa) + u128::from(tally.remainders);
    let sum = units as f64 * super::exact::unit(exponent.max(1) as u8);
    if number < 0 { -sum } else { sum }
}

/// The sign and exponent of a bin.
fn page_of(number: i32) -> usize {
    let sign = if number < 0 { PAGES / 2 } else { 0 };
    sign + (number.unsigned_abs() as usize >> MANTISSA_BITS)
}

/// The number of the bin at a place of a page.
fn number_in(page: usize, place: usize) -> i32 {
    let magnitude = ((page % (PAGES / 2)) << MANTISSA_BITS | place) as i32;
    if page < PAGES / 2 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_ascend_with_their_values() {
        struct Case {
            value: f32,
            number: i32,
        }
        let cases = [
            Case { value: f32::MIN, number: 1 - FIRST_INFINITE },
            Case { value: -1.0, number: -127 * 512 },
            Case { value: -f32::MIN_POSITIVE, number: -512 },
            Case { value: -1e-45, number: 0 },
            Case { value: -0.0, number: 0 },
            Case { value: 0.0, number: 0 },
            Case { value: 1e-45, number: 0 },
            Case { value: f32::MIN_POSITIVE, number: 512 },
            Case { value: 1.0, number: 127 * 512 },
            Case { value: 1.0 + 1.0 / 512.0 - f32::EPSILON, number: 127 * 512 },
            Case { value: 1.0 + 1.0 / 512.0, number: 127 * 512 + 1 },
            Case { value: f32::MAX, number: FIRST_INFINITE - 1 },
        ];
        for Case { value, number } in cases {
            assert_eq!(number_of(value.to_bits()), number, "{value}");
            let (low, high) = magnitudes_of(number);
            assert!((low..high).contains(&value.abs()), "{value} in {low}..{high}");
            assert_eq!(number_in(page_of(number), number.unsigned_abs() as usize % PAGE), number);
        }
    }

    #[test]
    fn sums_of_bins_are_exact() {
        for values in [vec![1.0f32, 1.001, 1.0019], vec![-3e-41; 5], vec![-6.25, -6.26], vec![f32::MAX; 3]] {
            let mut histogram = Histogram::default();
            histogram.count(&values);
            let sum: f64 = histogram.tallies().iter().map(|(number, tally)| sum_of(*number, *tally)).sum();
            assert_eq!(sum, values.iter().map(|x| f64::from(*x)).sum::<f64>(), "{values:?}");
        }
    }

    #[test]
    fn where_values_are_counted_makes_no_difference() {
        let mut values: Vec<f32> = (0..4000).map(|i| ((i * 7919 % 4001) as f32 - 1500.0) * 0.01).collect();
        // Many zeros, which are counted apart, and as many as are not.
        values.extend((0..3000).map(|i| if i % 3 == 0 { i as f32 } else { [0.0, -0.0][i % 2] }));
        values.extend((0..3000).map(|i| if i % 40 == 0 { -0.0 } else { i as f32 }));
        let mut once = Histogram::default();
        once.count(&values);
        assert!(once.words.len() > PAGE && once.others.len() > 10, "some in pages, some not");
        let mut again = Histogram::default();
        values.chunks(13).for_each(|chunk| again.count(chunk));
        assert_eq!(once.tallies(), again.tallies());
        let mut added = Histogram::default();
        for chunk in values.chunks(1700) {
            let mut part = Histogram::default();
            part.count(chunk);
            added.add_all(&part.tallies());
        }
        assert_eq!(once.tallies(), added.tallies());
    }

    #[test]
    fn counts_beyond_a_word_are_kept() {
        let mut histogram = Histogram::default();
        let value = [1.0 + 1.0 / 512.0 - f32::EPSILON];
        histogram.count(&[value[0]; 1000]);
        histogram.count(&[0.0, 1e-44, -1e-44]);
        let full = Tally { count: WINDOW - 1002, remainders: (WINDOW - 1002) * LARGEST_REMAINDER };
        histogram.add_all(&[(127 * 512, full)]);
        assert!(histogram.others.keys().all(|number| *number == 0));
        histogram.window = 5;
        for _ in 0..20 {
            histogram.count(&value);
        }
        assert!(histogram.others.contains_key(&(127 * 512)), "the window has ended");
        histogram.add_all(&[(127 * 512, Tally { count: 1 << 40, remainders: 7 })]);
        let count = WINDOW + 18 + (1 << 40);
        assert_eq!(histogram.tallies()[0], (0, Tally { count: 3, remainders: 0 }));
        assert_eq!(histogram.tallies()[1..], [(127 * 512, Tally { count, remainders: (WINDOW + 18) * LARGEST_REMAINDER + 7 })]);
    }
}
