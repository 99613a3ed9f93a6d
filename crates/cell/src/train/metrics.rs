//! Figures on held-out rows.

#![expect(clippy::indexing_slicing, reason = "numerics: class codes are below the number of classes")]

use wire::Metric;

fn metric(name: &str, value: f64) -> Metric {
    Metric { name: name.to_owned(), value }
}

/// `accuracy`, `log_loss`, `f1_macro`, and `roc_auc` for two classes when both are there.
pub(crate) fn classification(probabilities: &[Vec<f32>], truth: &[u32], classes: usize) -> Vec<Metric> {
    let rows = truth.len().max(1) as f64;
    let mut hits = 0_u64;
    let mut log_loss = 0.0;
    let mut confusion = vec![[0_u64; 3]; classes];
    for (p, &truth) in probabilities.iter().zip(truth) {
        let truth = truth as usize;
        let predicted = argmax(p);
        hits += u64::from(predicted == truth);
        confusion[truth][0] += u64::from(predicted == truth);
        confusion[truth][1] += 1;
        confusion[predicted][2] += 1;
        log_loss -= f64::from(p[truth]).clamp(1e-15, 1.0).ln();
    }
    let seen: Vec<f64> = confusion
        .iter()
        .filter(|[_, truths, predicted]| truths + predicted > 0)
        .map(|[hits, truths, predicted]| 2.0 * *hits as f64 / (truths + predicted) as f64)
        .collect();
    let mut metrics = vec![
        metric("accuracy", hits as f64 / rows),
        metric("log_loss", log_loss / rows),
        metric("f1_macro", seen.iter().sum::<f64>() / seen.len().max(1) as f64),
    ];
    if classes == 2
        && let Some(area) = roc_auc(&probabilities.iter().map(|p| p[1]).collect::<Vec<f32>>(), truth)
    {
        metrics.push(metric("roc_auc", area));
    }
    metrics
}

/// The first largest.
pub(crate) fn argmax(p: &[f32]) -> usize {
    p.iter().enumerate().fold(0, |best, (index, &value)| if value > p[best] { index } else { best })
}

/// The area under the ROC curve by ranks; ties count half.
fn roc_auc(scores: &[f32], truth: &[u32]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut ranks, mut at) = (0.0, 0);
    while at < order.len() {
        let ties = order[at..].iter().take_while(|&&row| scores[row] == scores[order[at]]).count();
        let rank = at as f64 + (ties as f64 + 1.0) / 2.0;
        ranks += rank * order[at..at + ties].iter().filter(|&&row| truth[row] == 1).count() as f64;
        at += ties;
    }
    let positive = truth.iter().filter(|&&code| code == 1).count() as f64;
    let negative = truth.len() as f64 - positive;
    (positive > 0.0 && negative > 0.0).then(|| (ranks - positive * (positive + 1.0) / 2.0) / (positive * negative))
}

/// `rmse`, `mae`, and `r2` when the truth varies.
pub(crate) fn regression(predicted: &[f32], truth: &[f64]) -> Vec<Metric> {
    let rows = truth.len().max(1) as f64;
    let mean = truth.iter().sum::<f64>() / rows;
    let (mut squares, mut absolute, mut total) = (0.0, 0.0, 0.0);
    for (&predicted, &truth) in predicted.iter().zip(truth) {
        let error = f64::from(predicted) - truth;
        squares += error * error;
        absolute += error.abs();
        total += (truth - mean).powi(2);
    }
    let mut metrics = vec![metric("rmse", (squares / rows).sqrt()), metric("mae", absolute / rows)];
    if total > 0.0 {
        metrics.push(metric("r2", 1.0 - squares / total));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_case_done_by_hand() {
        let p: Vec<Vec<f32>> = [0.1, 0.4, 0.35, 0.8].iter().map(|&p| vec![1.0 - p, p]).collect();
        let metrics = classification(&p, &[0, 0, 1, 1], 2);
        let value = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap().value;
        assert_eq!(value("accuracy"), 0.75);
        assert_eq!(value("roc_auc"), 0.75);
        assert!((value("log_loss") - 0.472_287_9).abs() < 1e-6);
        assert!((value("f1_macro") - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        let metrics = regression(&[2.0, 4.0], &[1.0, 5.0]);
        assert_eq!(metrics.iter().map(|metric| metric.value).collect::<Vec<_>>(), [1.0, 1.0, 0.75]);
    }
}
