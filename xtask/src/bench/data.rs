//! Tables with thirty numbers and a class that depends on them, made anew each time from a fixed seed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Result;

/// Numbers of a row.
pub(super) const FEATURES: usize = 30;
/// Rows on which both trainers are judged.
pub(super) const HELD_OUT_ROWS: usize = 20_000;
/// Rows of the table for the small model.
const SMALL_ROWS: usize = 2_000;

/// The files.
pub(super) struct Data {
    pub(super) large: PathBuf,
    pub(super) rows: usize,
    pub(super) small: PathBuf,
    pub(super) held_out: PathBuf,
    /// Held-out rows for the service: features and class.
    pub(super) held_out_rows: Vec<(Vec<f32>, u8)>,
}

impl Data {
    pub(super) fn make(folder: &Path, rows: usize) -> Result<Self> {
        println!("\nmaking data: {rows} rows of {FEATURES} features");
        let mut random = Random(42);
        let file = |name: &str| folder.join(name);
        let data = Self { large: file("large.csv"), rows, small: file("small.csv"), held_out: file("held-out.csv"), held_out_rows: vec![] };
        write(&data.large, (0..rows).map(|_| random.row()))?;
        write(&data.small, (0..SMALL_ROWS).map(|_| random.row()))?;
        let held_out: Vec<_> = (0..HELD_OUT_ROWS).map(|_| random.row()).collect();
        write(&data.held_out, held_out.iter().cloned())?;
        Ok(Self { held_out_rows: held_out, ..data })
    }

    /// A request about one held-out row.
    pub(super) fn request(&self) -> String {
        request(self.held_out_rows.get(..1).unwrap_or_default())
    }
}

/// An inference request about these rows.
pub(super) fn request(rows: &[(Vec<f32>, u8)]) -> String {
    let data: Vec<f32> = rows.iter().flat_map(|(features, _)| features).copied().collect();
    json!({"inputs": [{"name": "input", "shape": [rows.len(), FEATURES], "datatype": "FP32", "data": data}]}).to_string()
}

fn write(path: &Path, rows: impl Iterator<Item = (Vec<f32>, u8)>) -> Result<()> {
    let failed = |error: std::io::Error| format!("cannot write `{}`: {error}", path.display());
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let header: Vec<String> = (0..FEATURES).map(|at| format!("x{at}")).chain(["y".to_owned()]).collect();
    writeln!(file, "{}", header.join(",")).map_err(failed)?;
    for (features, class) in rows {
        let line: Vec<String> = features.iter().map(ToString::to_string).chain([class.to_string()]).collect();
        writeln!(file, "{}", line.join(",")).map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Nearly normal: the sum of uniforms.
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.uniform()).sum::<f64>() - 3.0
    }

    /// Linear parts, products and a threshold, with noise, so that trees have something to find and cannot find all.
    fn row(&mut self) -> (Vec<f32>, u8) {
        let x: Vec<f64> = (0..FEATURES).map(|_| (self.normal() * 1e4).round() / 1e4).collect();
        let at = |place: usize| x.get(place).copied().unwrap_or_default();
        let linear: f64 = x.iter().take(10).enumerate().map(|(place, value)| value * (1.0 - place as f64 / 10.0)).sum();
        let step = if at(12) > 0.3 { 1.0 } else { -0.5 };
        let score = linear + 1.5 * at(10) * at(11) + step + (2.0 * at(13)).sin() + 0.7 * self.normal();
        (x.iter().map(|value| *value as f32).collect(), u8::from(score > 0.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_each_time_and_both_classes_occur() {
        let rows = |seed| (0..500).scan(Random(seed), |random, _| Some(random.row())).collect::<Vec<_>>();
        assert_eq!(rows(7), rows(7));
        let ones = rows(7).iter().filter(|(_, class)| *class == 1).count();
        assert!((100..400).contains(&ones), "{ones}");
        assert!(rows(7).iter().all(|(features, _)| features.len() == FEATURES));
    }
}
