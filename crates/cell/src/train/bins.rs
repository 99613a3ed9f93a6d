//! Columns in at most 255 bins, by quantile.
//!
//! Between two neighbouring values `a < b` the threshold is a number of single precision with `a <= t < b`, so that a tree that
//! asks `x <= t` decides in FP32 exactly as the bins did.

#![expect(clippy::indexing_slicing, reason = "numerics: bounds are those of the loops")]

use super::random::Random;

/// Bin of missing values.
pub(super) const MISSING_BIN: u8 = 255;
/// Values looked at to place the thresholds.
const SAMPLE_MAX: usize = 100_000;

/// All columns in bins.
pub(super) struct Binned {
    /// Bin of each row, by column.
    pub(super) columns: Vec<Vec<u8>>,
    /// Thresholds by column, ascending; bin `b` holds values up to and including `thresholds[b]`, the last bin the rest.
    pub(super) thresholds: Vec<Vec<f32>>,
    /// Whether the column misses values.
    pub(super) missing: Vec<bool>,
}

impl Binned {
    /// Bins of these columns; at most `bins_max` (2 to 255) for values and one for missing.
    pub(super) fn new(columns: &[Vec<f32>], bins_max: usize, seed: u64) -> Self {
        let mut binned = Self { columns: Vec::new(), thresholds: Vec::new(), missing: Vec::new() };
        for (number, column) in columns.iter().enumerate() {
            let thresholds = thresholds(column, bins_max, &mut Random::new(seed, 1_000 + number as u64));
            binned.missing.push(column.iter().any(|value| value.is_nan()));
            binned.columns.push(column.iter().map(|&value| bin(&thresholds, value)).collect());
            binned.thresholds.push(thresholds);
        }
        binned
    }
}

fn bin(thresholds: &[f32], value: f32) -> u8 {
    if value.is_nan() {
        return MISSING_BIN;
    }
    thresholds.partition_point(|&threshold| threshold < value) as u8
}

fn thresholds(column: &[f32], bins_max: usize, random: &mut Random) -> Vec<f32> {
    let mut values: Vec<f32> = if column.len() <= SAMPLE_MAX {
        column.iter().copied().filter(|value| !value.is_nan()).collect()
    } else {
        (0..SAMPLE_MAX).map(|_| column[random.below(column.len())]).filter(|value| !value.is_nan()).collect()
    };
    values.sort_unstable_by(f32::total_cmp);
    let mut distinct: Vec<(f32, usize)> = Vec::new();
    for value in values {
        match distinct.last_mut() {
            Some((last, count)) if *last == value => *count += 1,
            _ => distinct.push((value, 1)),
        }
    }
    if distinct.len() <= bins_max {
        return distinct.windows(2).map(|pair| between(pair[0].0, pair[1].0)).collect();
    }
    let mut thresholds = Vec::with_capacity(bins_max);
    let mut left: usize = distinct.iter().map(|(_, count)| count).sum();
    let mut filled = 0;
    for pair in distinct.windows(2) {
        let ((value, count), (next, next_count)) = (pair[0], pair[1]);
        filled += count;
        let bins_left = bins_max - thresholds.len();
        if bins_left <= 1 {
            break;
        }
        let target = left as f64 / bins_left as f64;
        if filled as f64 >= target || filled as f64 + next_count as f64 / 2.0 > target {
            thresholds.push(between(value, next));
            left -= filled;
            filled = 0;
        }
    }
    thresholds
}

/// A number `t` of single precision with `a <= t < b`.
fn between(a: f32, b: f32) -> f32 {
    let middle = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
    if middle < b { middle.max(a) } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_part_neighbours_exactly() {
        let (a, b) = (1.0_f32, 1.0_f32.next_up());
        for (a, b) in [(a, b), (0.0, f32::MIN_POSITIVE), (-1.0, 1.0), (f32::MIN, f32::MAX), (-0.0, f32::from_bits(1))] {
            let t = between(a, b);
            assert!(a <= t && t < b, "{a} {t} {b}");
        }
        let column = vec![3.0, 1.0, f32::NAN, 2.0, 1.0];
        let binned = Binned::new(&[column], 255, 0);
        assert_eq!(binned.columns[0], [2, 0, MISSING_BIN, 1, 0]);
        assert!(binned.missing[0]);
    }

    #[test]
    fn many_values_fill_all_bins_evenly() {
        let column: Vec<f32> = (0..10_000).map(|i| (i * 7_919 % 10_000) as f32).collect();
        let binned = Binned::new(&[column], 255, 0);
        let mut counts = [0; 256];
        for &bin in &binned.columns[0] {
            counts[bin as usize] += 1;
        }
        let used = counts.iter().filter(|&&count| count > 0).count();
        assert!(used >= 250 && counts.iter().max() < Some(&60), "{used} {counts:?}");
    }
}
