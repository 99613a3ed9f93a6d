//! One regression tree on binned columns, grown leaf by leaf.
//!
//! As in LightGBM (Ke et al. 2017): gradients are summed into a histogram per column; the leaf with the largest gain is split next;
//! of two new leaves only the smaller is summed, the other is parent minus sibling. Missing values go to the side where they gain
//! more; a column without any sends later missing values to the larger side.

#![expect(clippy::indexing_slicing, reason = "numerics: indices come from the loops and from bins of a byte")]

use super::bins::{Binned, MISSING_BIN};

/// Rows summed per column before the next column: their gradients stay in the first-level cache.
const CHUNK_ROWS: usize = 2_048;
/// Gain below which a split is noise of rounding.
const GAIN_MIN: f64 = 1e-9;

/// Sum of gradients and of hessians by bin.
type Histogram = [[f64; 2]; 256];

/// What limits growth.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) leaves: usize,
    /// 0 for no limit.
    pub(super) depth: usize,
    pub(super) samples_leaf: f64,
    pub(super) hessian: f64,
    pub(super) l2: f64,
    pub(super) learning_rate: f64,
}

/// A grown tree; node 0 is its root.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    /// Root first, children after their parent.
    pub(crate) nodes: Vec<Node>,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// Asks `value <= threshold`.
    Split {
        /// Column.
        feature: usize,
        /// Last bin of the left side.
        bin: u8,
        /// The same in values.
        threshold: f32,
        /// Whether missing values go left.
        missing_left: bool,
        /// Node for yes.
        left: usize,
        /// Node for no.
        right: usize,
    },
    /// Adds this.
    Leaf(f32),
}

impl Tree {
    /// The value for a row of numbers, given by column.
    pub(crate) fn value(&self, column: impl Fn(usize) -> f32) -> f32 {
        self.walk(|feature, _, threshold, missing_left| {
            let value = column(feature);
            if value.is_nan() { missing_left } else { value <= threshold }
        })
    }

    /// The value for a row of bins.
    fn value_binned(&self, binned: &Binned, row: usize) -> f32 {
        self.walk(|feature, bin, _, missing_left| goes_left(binned.columns[feature][row], bin, missing_left))
    }

    fn walk(&self, left: impl Fn(usize, u8, f32, bool) -> bool) -> f32 {
        let mut node = 0;
        loop {
            match &self.nodes[node] {
                Node::Leaf(value) => return *value,
                Node::Split { feature, bin, threshold, missing_left, left: yes, right: no } => {
                    node = if left(*feature, *bin, *threshold, *missing_left) { *yes } else { *no };
                }
            }
        }
    }
}

fn goes_left(bin: u8, last: u8, missing_left: bool) -> bool {
    if bin == MISSING_BIN { missing_left } else { bin <= last }
}

/// Grows trees and keeps the memory for it.
pub(super) struct Grower<'a> {
    binned: &'a Binned,
    limits: Limits,
    order: Vec<u32>,
    right: Vec<u32>,
    chunk: Vec<[f32; 2]>,
    spare: Vec<Vec<Histogram>>,
}

struct Leaf {
    node: usize,
    start: usize,
    end: usize,
    depth: usize,
    sums: [f64; 2],
    histograms: Vec<Histogram>,
    best: Option<Split>,
}

#[derive(Debug, Clone, Copy)]
struct Split {
    gain: f64,
    feature: usize,
    bin: u8,
    missing_left: bool,
    left: [f64; 2],
}

impl<'a> Grower<'a> {
    pub(super) fn new(binned: &'a Binned, limits: Limits) -> Self {
        Self { binned, limits, order: Vec::new(), right: Vec::new(), chunk: Vec::with_capacity(CHUNK_ROWS), spare: Vec::new() }
    }

    /// Grows one tree on `rows` and these `features`, and adds its values to the scores of all rows.
    pub(super) fn grow(&mut self, rows: &[u32], features: &[usize], gradients: &[[f32; 2]], scores: &mut [f32]) -> Tree {
        self.order.clear();
        self.order.extend_from_slice(rows);
        let sums = rows.iter().fold([0.0, 0.0], |sums, &row| {
            let [g, h] = gradients[row as usize];
            [sums[0] + f64::from(g), sums[1] + f64::from(h)]
        });
        let mut tree = Tree { nodes: vec![Node::Leaf(0.0)] };
        let mut root = Leaf { node: 0, start: 0, end: rows.len(), depth: 0, sums, histograms: Vec::new(), best: None };
        root.histograms = self.sum(root.start, root.end, features, gradients);
        root.best = self.best(&root, features);
        let mut leaves = vec![root];
        while leaves.len() < self.limits.leaves {
            let mut chosen: Option<(usize, Split)> = None;
            for (index, leaf) in leaves.iter().enumerate() {
                if let Some(split) = leaf.best
                    && chosen.is_none_or(|(_, best)| split.gain > best.gain)
                {
                    chosen = Some((index, split));
                }
            }
            let Some((index, split)) = chosen else { break };
            let last = leaves.len() + 1 == self.limits.leaves;
            match self.split(&mut leaves[index], split, &mut tree, features, gradients, last) {
                Some(right) => leaves.push(right),
                None => leaves[index].best = None,
            }
        }
        self.close(leaves, &mut tree, rows.len() == scores.len(), scores);
        tree
    }

    /// Writes the leaves' values and adds them to the scores.
    fn close(&mut self, leaves: Vec<Leaf>, tree: &mut Tree, all_rows: bool, scores: &mut [f32]) {
        for leaf in leaves {
            let value = (-leaf.sums[0] / (leaf.sums[1] + self.limits.l2).max(1e-12) * self.limits.learning_rate) as f32;
            tree.nodes[leaf.node] = Node::Leaf(value);
            if all_rows {
                for &row in &self.order[leaf.start..leaf.end] {
                    scores[row as usize] += value;
                }
            }
            if !leaf.histograms.is_empty() {
                self.spare.push(leaf.histograms);
            }
        }
        if !all_rows {
            for (row, score) in scores.iter_mut().enumerate() {
                *score += tree.value_binned(self.binned, row);
            }
        }
    }

    /// Makes `leaf` its left child and gives the right one; nothing when a side stays empty.
    fn split(
        &mut self,
        leaf: &mut Leaf,
        split: Split,
        tree: &mut Tree,
        features: &[usize],
        gradients: &[[f32; 2]],
        last: bool,
    ) -> Option<Leaf> {
        let middle = self.partition(leaf, split);
        if middle == leaf.start || middle == leaf.end {
            return None;
        }
        let (left, right) = (tree.nodes.len(), tree.nodes.len() + 1);
        let thresholds = &self.binned.thresholds[split.feature];
        let threshold = thresholds.get(usize::from(split.bin)).copied().unwrap_or(f32::MAX);
        let (feature, bin, missing_left) = (split.feature, split.bin, split.missing_left);
        tree.nodes[leaf.node] = Node::Split { feature, bin, threshold, missing_left, left, right };
        tree.nodes.extend([Node::Leaf(0.0), Node::Leaf(0.0)]);
        let sums = [leaf.sums[0] - split.left[0], leaf.sums[1] - split.left[1]];
        let depth = leaf.depth + 1;
        let mut sibling = Leaf { node: right, start: middle, end: leaf.end, depth, sums, histograms: Vec::new(), best: None };
        let mut parent = std::mem::take(&mut leaf.histograms);
        *leaf = Leaf { node: left, start: leaf.start, end: middle, depth, sums: split.left, histograms: Vec::new(), best: None };
        let open = |leaf: &Leaf| (leaf.end - leaf.start) as f64 >= 2.0 * self.limits.samples_leaf;
        let deeper = self.limits.depth == 0 || depth < self.limits.depth;
        if last || !deeper || !(open(leaf) || open(&sibling)) {
            self.spare.push(parent);
            return Some(sibling);
        }
        let (small, large) =
            if leaf.end - leaf.start <= sibling.end - sibling.start { (&mut *leaf, &mut sibling) } else { (&mut sibling, &mut *leaf) };
        small.histograms = self.sum(small.start, small.end, features, gradients);
        for &feature in features {
            for (parent, child) in parent[feature].iter_mut().zip(&small.histograms[feature]) {
                parent[0] -= child[0];
                parent[1] -= child[1];
            }
        }
        large.histograms = parent;
        leaf.best = self.best(leaf, features);
        sibling.best = self.best(&sibling, features);
        Some(sibling)
    }

    /// Sorts the rows of a leaf by side, keeping their order; gives where the right side starts.
    fn partition(&mut self, leaf: &Leaf, split: Split) -> usize {
        let column = &self.binned.columns[split.feature];
        self.right.clear();
        let mut next = leaf.start;
        for position in leaf.start..leaf.end {
            let row = self.order[position];
            if goes_left(column[row as usize], split.bin, split.missing_left) {
                self.order[next] = row;
                next += 1;
            } else {
                self.right.push(row);
            }
        }
        self.order[next..leaf.end].copy_from_slice(&self.right);
        next
    }

    /// Sums the gradients of a leaf's rows by column and bin.
    fn sum(&mut self, start: usize, end: usize, features: &[usize], gradients: &[[f32; 2]]) -> Vec<Histogram> {
        let mut histograms = self.spare.pop().unwrap_or_else(|| vec![[[0.0; 2]; 256]; self.binned.columns.len()]);
        for &feature in features {
            histograms[feature].fill([0.0; 2]);
        }
        for rows in self.order[start..end].chunks(CHUNK_ROWS) {
            self.chunk.clear();
            self.chunk.extend(rows.iter().map(|&row| gradients[row as usize]));
            for &feature in features {
                add(&mut histograms[feature], &self.binned.columns[feature], rows, &self.chunk);
            }
        }
        histograms
    }

    fn best(&self, leaf: &Leaf, features: &[usize]) -> Option<Split> {
        let rows = (leaf.end - leaf.start) as f64;
        if rows < 2.0 * self.limits.samples_leaf || (self.limits.depth > 0 && leaf.depth >= self.limits.depth) {
            return None;
        }
        let search = Search { limits: &self.limits, sums: leaf.sums, rows_per_hessian: rows / leaf.sums[1].max(1e-12) };
        let mut best: Option<Split> = None;
        for &feature in features {
            let bins = self.binned.thresholds[feature].len() + 1;
            search.column(feature, &leaf.histograms[feature], bins, self.binned.missing[feature], &mut best);
        }
        best
    }
}

/// Adds the gradients of `rows` to the bins of one column. The inner loop of all training.
fn add(histogram: &mut Histogram, column: &[u8], rows: &[u32], gradients: &[[f32; 2]]) {
    for (&row, &[g, h]) in rows.iter().zip(gradients) {
        let sums = &mut histogram[usize::from(column[row as usize])];
        sums[0] += f64::from(g);
        sums[1] += f64::from(h);
    }
}

/// The search for the best split of one leaf.
struct Search<'a> {
    limits: &'a Limits,
    sums: [f64; 2],
    /// Rows of a side are told from its hessian, exactly for squared error.
    rows_per_hessian: f64,
}

impl Search<'_> {
    fn column(&self, feature: usize, histogram: &Histogram, bins: usize, may_miss: bool, best: &mut Option<Split>) {
        let missing = histogram[usize::from(MISSING_BIN)];
        let misses = may_miss && missing[1] > 1e-12;
        let mut left = [0.0, 0.0];
        for (bin, sums) in histogram.iter().take(bins).enumerate() {
            left = [left[0] + sums[0], left[1] + sums[1]];
            let last = bin + 1 == bins;
            if last && !misses {
                break;
            }
            self.consider(Split { gain: 0.0, feature, bin: bin as u8, missing_left: false, left }, !misses, best);
            if misses && !last {
                let left = [left[0] + missing[0], left[1] + missing[1]];
                self.consider(Split { gain: 0.0, feature, bin: bin as u8, missing_left: true, left }, false, best);
            }
        }
    }

    fn consider(&self, mut split: Split, larger_side: bool, best: &mut Option<Split>) {
        let left = split.left;
        let right = [self.sums[0] - left[0], self.sums[1] - left[1]];
        let smaller = left[1].min(right[1]);
        if smaller < self.limits.hessian || smaller * self.rows_per_hessian + 0.5 < self.limits.samples_leaf {
            return;
        }
        let l2 = self.limits.l2;
        let score = |[g, h]: [f64; 2]| g * g / (h + l2).max(1e-12);
        split.gain = score(left) + score(right) - score(self.sums);
        if split.gain > best.map_or(GAIN_MIN, |best| best.gain) {
            if larger_side {
                split.missing_left = left[1] >= right[1];
            }
            *best = Some(split);
        }
    }
}
