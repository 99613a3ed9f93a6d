//! Linear models: ridge regression and logistic regression with an L2 penalty.
//!
//! Numbers are standardised and missing ones stand for the mean; each text is a column of zeros and ones, and an unknown text is
//! all zeros. Ridge solves the normal equations by Cholesky. Logistic regression (softmax for more than two classes) minimises by
//! L-BFGS (Nocedal, Wright 2006, algorithm 7.5). The penalty is `l2 / 2 · |w|²` beside the summed loss, without the intercept,
//! which is scikit-learn's `C = 1 / l2`.

#![expect(clippy::indexing_slicing, reason = "numerics: indices come from the loops over fixed shapes")]

use wire::{Fail, FailCode};

use super::parameters::Parameters;
use super::{Encoding, Events, Feature, Goal};

/// Most columns after texts are spread out.
const COLUMNS_MAX: usize = 2_000;
/// Largest matrix in bytes.
const MATRIX_BYTES_MAX: usize = 1 << 30;
/// Pairs that L-BFGS remembers.
const MEMORY: usize = 10;
/// Halvings of one line search.
const HALVINGS_MAX: usize = 30;

/// `scores = design(row) · weights + intercepts`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Linear {
    /// What turns features into columns.
    pub(crate) design: Design,
    /// By output, then column.
    pub(crate) weights: Vec<Vec<f32>>,
    /// By output.
    pub(crate) intercepts: Vec<f32>,
}

/// How features become columns: first all numbers, then the texts, each in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Design {
    /// Feature, mean and one over the standard deviation, of each number.
    pub(crate) numbers: Vec<(usize, f32, f32)>,
    /// Feature and number of texts, of each text.
    pub(crate) texts: Vec<(usize, usize)>,
}

impl Design {
    fn new(features: &[Feature], columns: &[Vec<f32>]) -> Self {
        let mut design = Self { numbers: Vec::new(), texts: Vec::new() };
        for (index, (feature, column)) in features.iter().zip(columns).enumerate() {
            match &feature.encoding {
                Encoding::Number => {
                    let (mean, deviation) = moments(column);
                    let scale = if deviation > 0.0 { 1.0 / deviation } else { 1.0 };
                    design.numbers.push((index, mean as f32, scale as f32));
                }
                Encoding::Text(texts) => design.texts.push((index, texts.len())),
            }
        }
        design
    }

    /// Columns.
    pub(crate) fn width(&self) -> usize {
        self.numbers.len() + self.texts.iter().map(|(_, texts)| texts).sum::<usize>()
    }

    /// One row.
    fn fill(&self, columns: &[Vec<f32>], row: usize, out: &mut [f32]) {
        out.fill(0.0);
        for (out, &(feature, mean, scale)) in out.iter_mut().zip(&self.numbers) {
            let value = (columns[feature][row] - mean) * scale;
            *out = if value.is_nan() { 0.0 } else { value };
        }
        let mut at = self.numbers.len();
        for &(feature, texts) in &self.texts {
            let code = columns[feature][row];
            if !code.is_nan() {
                out[at + code as usize] = 1.0;
            }
            at += texts;
        }
    }
}

fn moments(column: &[f32]) -> (f64, f64) {
    let known = || column.iter().filter(|value| !value.is_nan()).map(|&value| f64::from(value));
    let count = known().count().max(1) as f64;
    let mean = known().sum::<f64>() / count;
    let squares: f64 = known().map(|value| (value - f64::from(mean as f32)).powi(2)).sum();
    (mean, (squares / count).sqrt())
}

impl Linear {
    /// Scores of all rows.
    pub(crate) fn scores(&self, columns: &[Vec<f32>], rows: usize) -> Vec<Vec<f32>> {
        let mut values = vec![0.0; self.design.width()];
        let mut all = Vec::with_capacity(rows);
        for row in 0..rows {
            self.design.fill(columns, row, &mut values);
            let score = |(weights, intercept): (&Vec<f32>, &f32)| dot32(weights, &values) + intercept;
            all.push(self.weights.iter().zip(&self.intercepts).map(score).collect());
        }
        all
    }
}

fn dot32(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

/// Trains on these columns.
///
/// # Errors
/// Too many columns, or no unique solution without a penalty.
pub(crate) fn fit(
    features: &[Feature],
    columns: &[Vec<f32>],
    goal: &Goal,
    parameters: &Parameters,
    events: &mut dyn Events,
) -> Result<Linear, Fail> {
    let design = Design::new(features, columns);
    let (width, rows) = (design.width(), goal.rows());
    if width > COLUMNS_MAX {
        let message =
            format!("{width} columns after texts are spread out, {COLUMNS_MAX} at most: exclude columns or use gradient_boosting");
        return Err(Fail::new(FailCode::TooLarge, message));
    }
    if width.saturating_mul(rows).saturating_mul(4) > MATRIX_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, "the table is larger than 1 GiB after texts are spread out: exclude columns"));
    }
    let mut matrix = vec![0.0_f32; width * rows];
    for (row, out) in matrix.chunks_exact_mut(width.max(1)).enumerate() {
        design.fill(columns, row, out);
    }
    let (weights, intercepts) = match goal {
        Goal::Numbers(values) => {
            let (weights, intercept) = ridge(&matrix, width, values, parameters.get("l2"))?;
            events.progress("training", 1, 1);
            (vec![weights], vec![intercept])
        }
        Goal::Classes { codes, count } => {
            logistic(&Logistic { matrix: &matrix, width, codes, count: *count, l2: parameters.get("l2") }, parameters, events)
        }
    };
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect::<Vec<f32>>();
    Ok(Linear { design, weights: weights.into_iter().map(narrow).collect(), intercepts: narrow(intercepts) })
}

/// Weights and intercept of ridge regression.
fn ridge(matrix: &[f32], width: usize, values: &[f64], l2: f64) -> Result<(Vec<f64>, f64), Fail> {
    let rows = values.len() as f64;
    let mut means = vec![0.0; width];
    for row in matrix.chunks_exact(width) {
        means.iter_mut().zip(row).for_each(|(mean, &x)| *mean += f64::from(x) / rows);
    }
    let mean = values.iter().sum::<f64>() / rows;
    let mut normal = vec![0.0; width * width];
    let mut right = vec![0.0; width];
    let mut centred = vec![0.0; width];
    for (row, value) in matrix.chunks_exact(width).zip(values) {
        for ((centred, &x), mean) in centred.iter_mut().zip(row).zip(&means) {
            *centred = f64::from(x) - mean;
        }
        for (i, &x) in centred.iter().enumerate() {
            right[i] += x * (value - mean);
            normal[i * width..=i * width + i].iter_mut().zip(&centred).for_each(|(sum, &y)| *sum += x * y);
        }
    }
    for i in 0..width {
        normal[i * width + i] += l2;
    }
    let weights = solve(&mut normal, right, width)
        .ok_or_else(|| Fail::new(FailCode::Invalid, "some columns say the same, so there is no unique solution: set `l2` above 0"))?;
    let intercept = mean - weights.iter().zip(&means).map(|(weight, mean)| weight * mean).sum::<f64>();
    Ok((weights, intercept))
}

/// Solves by Cholesky; only the lower half of `normal` counts.
fn solve(normal: &mut [f64], mut right: Vec<f64>, width: usize) -> Option<Vec<f64>> {
    let largest = (0..width).map(|i| normal[i * width + i]).fold(0.0, f64::max);
    for i in 0..width {
        for j in 0..=i {
            let (before, row) = normal.split_at_mut(i * width);
            let dot = if i == j {
                row[..j].iter().map(|x| x * x).sum::<f64>()
            } else {
                row[..j].iter().zip(&before[j * width..j * width + j]).map(|(x, y)| x * y).sum()
            };
            let value = row[j] - dot;
            if i == j {
                if value <= largest * 1e-13 {
                    return None;
                }
                row[i] = value.sqrt();
            } else {
                row[j] = value / before[j * width + j];
            }
        }
    }
    for i in 0..width {
        let dot: f64 = normal[i * width..i * width + i].iter().zip(&right).map(|(x, y)| x * y).sum();
        right[i] = (right[i] - dot) / normal[i * width + i];
    }
    for i in (0..width).rev() {
        let dot: f64 = (i + 1..width).map(|j| normal[j * width + i] * right[j]).sum();
        right[i] = (right[i] - dot) / normal[i * width + i];
    }
    Some(right)
}

/// The problem of logistic regression.
struct Logistic<'a> {
    matrix: &'a [f32],
    width: usize,
    codes: &'a [u32],
    count: usize,
    l2: f64,
}

impl Logistic<'_> {
    fn outputs(&self) -> usize {
        if self.count == 2 { 1 } else { self.count }
    }

    /// Mean loss with penalty and its gradient. Parameters by output: weights, then intercept.
    fn loss(&self, at: &[f64], gradient: &mut [f64]) -> f64 {
        let (outputs, stride, rows) = (self.outputs(), self.width + 1, self.codes.len() as f64);
        gradient.fill(0.0);
        let mut loss = 0.0;
        let mut p = vec![0.0_f64; outputs];
        for (row, &code) in self.matrix.chunks_exact(self.width).zip(self.codes) {
            for (p, at) in p.iter_mut().zip(at.chunks_exact(stride)) {
                *p = at[self.width] + at.iter().zip(row).map(|(w, &x)| w * f64::from(x)).sum::<f64>();
            }
            loss += residual(&mut p, code as usize);
            for (p, gradient) in p.iter().zip(gradient.chunks_exact_mut(stride)) {
                gradient.iter_mut().zip(row).for_each(|(g, &x)| *g += p * f64::from(x));
                gradient[self.width] += p;
            }
        }
        gradient.iter_mut().for_each(|g| *g /= rows);
        loss /= rows;
        for (at, gradient) in at.chunks_exact(stride).zip(gradient.chunks_exact_mut(stride)) {
            for (w, g) in at.iter().zip(gradient).take(self.width) {
                loss += self.l2 / rows / 2.0 * w * w;
                *g += self.l2 / rows * w;
            }
        }
        loss
    }
}

/// Turns scores into probability minus truth; gives the log loss.
fn residual(p: &mut [f64], code: usize) -> f64 {
    if let [z] = p {
        let truth = code as f64;
        let margin = if code == 1 { -*z } else { *z };
        *z = 1.0 / (1.0 + (-*z).exp()) - truth;
        return margin.max(0.0) + (-margin.abs()).exp().ln_1p();
    }
    let largest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let own = p[code];
    p.iter_mut().for_each(|z| *z = (*z - largest).exp());
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|z| *z /= sum);
    p[code] -= 1.0;
    sum.ln() + largest - own
}

fn logistic(problem: &Logistic<'_>, parameters: &Parameters, events: &mut dyn Events) -> (Vec<Vec<f64>>, Vec<f64>) {
    let stride = problem.width + 1;
    let at = minimise(problem, parameters.count("max_iter"), parameters.get("tolerance"), events);
    let weights = at.chunks_exact(stride).map(|at| at[..problem.width].to_vec()).collect();
    (weights, at.chunks_exact(stride).map(|at| at[problem.width]).collect())
}

/// L-BFGS with halving until the loss falls enough.
fn minimise(problem: &Logistic<'_>, iterations: usize, tolerance: f64, events: &mut dyn Events) -> Vec<f64> {
    let size = (problem.width + 1) * problem.outputs();
    let mut at = vec![0.0; size];
    let mut gradient = vec![0.0; size];
    let mut loss = problem.loss(&at, &mut gradient);
    let mut pairs: std::collections::VecDeque<(Vec<f64>, Vec<f64>, f64)> = std::collections::VecDeque::new();
    let mut next_gradient = vec![0.0; size];
    for iteration in 0..iterations {
        events.progress("training", iteration as u64, iterations as u64);
        if gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs())) < tolerance {
            events.log(&format!("converged after {iteration} iterations with loss {loss:.6}"));
            return at;
        }
        let direction = direction(&gradient, &pairs);
        let slope = dot(&direction, &gradient);
        let mut step = if pairs.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
        let mut moved = None;
        for _ in 0..HALVINGS_MAX {
            let next: Vec<f64> = at.iter().zip(&direction).map(|(at, d)| at + step * d).collect();
            let next_loss = problem.loss(&next, &mut next_gradient);
            if next_loss <= loss + 1e-4 * step * slope {
                moved = Some((next, next_loss));
                break;
            }
            step /= 2.0;
        }
        let Some((next, next_loss)) = moved else {
            events.log(&format!("no further progress after {iteration} iterations with loss {loss:.6}"));
            return at;
        };
        let moved: Vec<f64> = next.iter().zip(&at).map(|(a, b)| a - b).collect();
        let turned: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&moved, &turned);
        if curvature > 1e-12 {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back((moved, turned, curvature));
        }
        at = next;
        loss = next_loss;
        std::mem::swap(&mut gradient, &mut next_gradient);
    }
    events.log(&format!("stopped after {iterations} iterations with loss {loss:.6}: raise `max_iter` for more"));
    at
}

/// Where L-BFGS goes.
fn direction(gradient: &[f64], pairs: &std::collections::VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for (moved, turned, curvature) in pairs.iter().rev() {
        let alpha = dot(moved, &q) / curvature;
        q.iter_mut().zip(turned).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    if let Some((_, turned, curvature)) = pairs.back() {
        let scale = curvature / dot(turned, turned);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((moved, turned, curvature), alpha) in pairs.iter().zip(alphas.into_iter().rev()) {
        let beta = dot(turned, &q) / curvature;
        q.iter_mut().zip(moved).for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
