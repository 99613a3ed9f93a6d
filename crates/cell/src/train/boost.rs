//! Gradient boosting (Friedman 2001) with second-order leaves, as LightGBM and XGBoost do it.
//!
//! Binary: log loss on one score. Several classes: softmax, one tree per class and round. Regression: squared error. With
//! `early_stopping_rounds` a share of the training rows only judges, and the best round wins.

#![expect(clippy::indexing_slicing, reason = "numerics: indices are rows and classes of the same table")]

use super::bins::Binned;
use super::parameters::Parameters;
use super::random::Random;
use super::tree::{Grower, Limits, Tree};
use super::{Events, Goal, ROUNDS_LOGGED, sigmoid, softmax};

/// Most memory of histograms in bytes.
const HISTOGRAM_BYTES_MAX: usize = 512 << 20;

/// A sum of trees.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forest {
    /// Score before any tree, by output.
    pub(crate) base: Vec<f32>,
    /// Trees with the output that each adds to.
    pub(crate) trees: Vec<(usize, Tree)>,
}

impl Forest {
    /// Scores of all rows of these columns, by row.
    pub(crate) fn scores(&self, columns: &[Vec<f32>], rows: usize) -> Vec<Vec<f32>> {
        let row_scores = |row: usize| {
            let mut scores = vec![0.0_f32; self.base.len()];
            for (output, tree) in &self.trees {
                scores[*output] += tree.value(|feature| columns[feature][row]);
            }
            scores.iter().zip(&self.base).map(|(score, base)| score + base).collect()
        };
        (0..rows).map(row_scores).collect()
    }
}

/// Trains on these columns.
///
/// # Errors
/// Too many leaves times columns for the memory of the histograms.
pub(crate) fn fit(
    columns: &[Vec<f32>],
    goal: &Goal,
    parameters: &Parameters,
    seed: u64,
    events: &mut dyn Events,
) -> Result<Forest, wire::Fail> {
    let rows = goal.rows();
    let leaves = parameters.count("num_leaves");
    if leaves.saturating_mul(columns.len()).saturating_mul(4096) > HISTOGRAM_BYTES_MAX {
        let message = "too many leaves times columns: lower `num_leaves` or exclude columns";
        return Err(wire::Fail::new(wire::FailCode::TooLarge, message));
    }
    let limits = Limits {
        leaves,
        depth: parameters.count("max_depth"),
        samples_leaf: parameters.get("min_samples_leaf"),
        hessian: parameters.get("min_sum_hessian"),
        l2: parameters.get("l2"),
        learning_rate: parameters.get("learning_rate"),
    };
    let binned = Binned::new(columns, parameters.count("max_bins"), seed);
    let mut grower = Grower::new(&binned, limits);
    let mut random = Random::new(seed, 2);
    let (fit_rows, judge_rows) = judges(rows, parameters, &mut random);
    let base = base(goal);
    let mut scores: Vec<Vec<f32>> = base.iter().map(|&base| vec![base; rows]).collect();
    let mut gradients = vec![[0.0_f32; 2]; rows];
    let mut forest = Forest { base, trees: Vec::new() };
    let rounds = parameters.count("n_estimators");
    let patience = parameters.count("early_stopping_rounds");
    let mut best = (f64::INFINITY, 0);
    let outputs = scores.len();
    for round in 0..rounds {
        let sampled = sample(&fit_rows, parameters.get("subsample"), &mut random);
        let features = sample_features(columns.len(), parameters.get("colsample"), &mut random);
        let probabilities = (outputs > 1).then(|| all_softmax(&scores));
        for output in 0..outputs {
            match &probabilities {
                Some(probabilities) => softmax_gradients(goal, &probabilities[output], output, &mut gradients),
                None => goal_gradients(goal, &scores[0], &mut gradients),
            }
            let tree = grower.grow(&sampled, &features, &gradients, &mut scores[output]);
            forest.trees.push((output, tree));
        }
        events.progress("training", round as u64 + 1, rounds as u64);
        let step = rounds.div_ceil(ROUNDS_LOGGED);
        if (round + 1) % step == 0 || round + 1 == rounds {
            events.log(&format!("round {}: training loss {:.6}", round + 1, loss(goal, &scores, &fit_rows)));
        }
        if patience > 0 {
            let judged = loss(goal, &scores, &judge_rows);
            if judged < best.0 {
                best = (judged, round + 1);
            } else if round + 1 >= best.1 + patience {
                break;
            }
        }
    }
    if patience > 0 && best.1 > 0 {
        forest.trees.truncate(best.1 * outputs);
        events.log(&format!("best round {} with loss {:.6} on {} rows held back", best.1, best.0, judge_rows.len()));
    }
    Ok(forest)
}

/// Rows to fit and rows to judge.
fn judges(rows: usize, parameters: &Parameters, random: &mut Random) -> (Vec<u32>, Vec<u32>) {
    let mut all: Vec<u32> = (0..rows as u32).collect();
    if parameters.count("early_stopping_rounds") == 0 {
        return (all, Vec::new());
    }
    random.shuffle(&mut all);
    let judges = ((rows as f64 * parameters.get("validation_share")).round() as usize).clamp(1, rows - 1);
    let mut fit = all.split_off(judges);
    fit.sort_unstable();
    all.sort_unstable();
    (fit, all)
}

fn sample(rows: &[u32], share: f64, random: &mut Random) -> Vec<u32> {
    if share >= 1.0 {
        return rows.to_vec();
    }
    let sampled: Vec<u32> = rows.iter().copied().filter(|_| random.unit() < share).collect();
    if sampled.is_empty() { rows.to_vec() } else { sampled }
}

fn sample_features(features: usize, share: f64, random: &mut Random) -> Vec<usize> {
    let mut all: Vec<usize> = (0..features).collect();
    if share < 1.0 {
        random.shuffle(&mut all);
        all.truncate(((features as f64 * share).ceil() as usize).max(1));
        all.sort_unstable();
    }
    all
}

/// The best constant score.
fn base(goal: &Goal) -> Vec<f32> {
    match goal {
        Goal::Numbers(values) => vec![(values.iter().sum::<f64>() / values.len() as f64) as f32],
        Goal::Classes { codes, count } => {
            let share = |class: usize| {
                let hits = codes.iter().filter(|&&code| code as usize == class).count();
                (hits as f64 / codes.len() as f64).clamp(1e-6, 1.0 - 1e-6)
            };
            if *count == 2 {
                let share = share(1);
                vec![(share / (1.0 - share)).ln() as f32]
            } else {
                (0..*count).map(|class| share(class).ln() as f32).collect()
            }
        }
    }
}

fn goal_gradients(goal: &Goal, scores: &[f32], gradients: &mut [[f32; 2]]) {
    match goal {
        Goal::Numbers(values) => {
            for ((gradient, &score), &value) in gradients.iter_mut().zip(scores).zip(values) {
                *gradient = [(f64::from(score) - value) as f32, 1.0];
            }
        }
        Goal::Classes { codes, .. } => {
            for ((gradient, &score), &code) in gradients.iter_mut().zip(scores).zip(codes) {
                let p = sigmoid(score);
                *gradient = [p - code as f32, (p * (1.0 - p)).max(1e-16)];
            }
        }
    }
}

/// Probabilities by class, then row.
fn all_softmax(scores: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let rows = scores[0].len();
    let mut probabilities = vec![vec![0.0; rows]; scores.len()];
    let mut one = vec![0.0; scores.len()];
    for row in 0..rows {
        for (one, scores) in one.iter_mut().zip(scores) {
            *one = scores[row];
        }
        softmax(&mut one);
        for (probabilities, &one) in probabilities.iter_mut().zip(&one) {
            probabilities[row] = one;
        }
    }
    probabilities
}

fn softmax_gradients(goal: &Goal, probabilities: &[f32], class: usize, gradients: &mut [[f32; 2]]) {
    let Goal::Classes { codes, .. } = goal else { return };
    for ((gradient, &p), &code) in gradients.iter_mut().zip(probabilities).zip(codes) {
        let hit = if code as usize == class { 1.0 } else { 0.0 };
        *gradient = [p - hit, (p * (1.0 - p)).max(1e-16)];
    }
}

/// Mean loss of these rows: log loss or squared error.
fn loss(goal: &Goal, scores: &[Vec<f32>], rows: &[u32]) -> f64 {
    let one = |row: usize| match goal {
        Goal::Numbers(values) => (f64::from(scores[0][row]) - values[row]).powi(2),
        Goal::Classes { codes, count: 2 } => {
            let z = f64::from(scores[0][row]) * if codes[row] == 1 { -1.0 } else { 1.0 };
            z.max(0.0) + (-z.abs()).exp().ln_1p()
        }
        Goal::Classes { codes, .. } => {
            let mut p: Vec<f32> = scores.iter().map(|scores| scores[row]).collect();
            softmax(&mut p);
            -f64::from(p[codes[row] as usize].max(1e-15)).ln()
        }
    };
    rows.iter().map(|&row| one(row as usize)).sum::<f64>() / rows.len().max(1) as f64
}
