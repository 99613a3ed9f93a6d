//! Parameters by their usual names, with bounds and defaults.

use std::collections::BTreeMap;

use wire::{Algorithm, Fail, FailCode};

/// One parameter.
struct Known {
    name: &'static str,
    /// Other libraries' names for it.
    aliases: &'static [&'static str],
    default: f64,
    min: f64,
    max: f64,
    whole: bool,
}

const fn known(name: &'static str, aliases: &'static [&'static str], default: f64, min: f64, max: f64, whole: bool) -> Known {
    Known { name, aliases, default, min, max, whole }
}

const BOOSTING: &[Known] = &[
    known("n_estimators", &["iterations", "max_iter", "num_iterations"], 100.0, 1.0, 5_000.0, true),
    known("learning_rate", &["eta"], 0.1, 1e-4, 1.0, false),
    known("num_leaves", &["max_leaf_nodes"], 31.0, 2.0, 1_024.0, true),
    known("max_depth", &[], 0.0, 0.0, 64.0, true),
    known("min_samples_leaf", &["min_child_samples", "min_data_in_leaf"], 20.0, 1.0, 1e9, true),
    known("min_sum_hessian", &["min_child_weight"], 1e-3, 0.0, 1e9, false),
    known("l2", &["l2_regularization", "lambda_l2", "reg_lambda"], 0.1, 0.0, 1e9, false),
    known("subsample", &["bagging_fraction"], 1.0, 0.01, 1.0, false),
    known("colsample", &["colsample_bytree", "feature_fraction"], 1.0, 0.01, 1.0, false),
    known("max_bins", &["max_bin"], 255.0, 2.0, 255.0, true),
    known("early_stopping_rounds", &[], 0.0, 0.0, 5_000.0, true),
    known("validation_share", &["validation_fraction"], 0.1, 0.01, 0.5, false),
];

const LINEAR: &[Known] = &[
    known("l2", &["alpha", "reg_lambda"], 1.0, 0.0, 1e9, false),
    known("max_iter", &["iterations"], 300.0, 1.0, 10_000.0, true),
    known("tolerance", &["tol"], 1e-6, 1e-12, 1.0, false),
];

/// All parameters of an algorithm, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameters(pub(crate) BTreeMap<String, f64>);

impl Parameters {
    /// Checks what was given.
    ///
    /// # Errors
    /// An unknown name (lists the known), a value out of bounds, a name given twice by an alias.
    pub(crate) fn new(algorithm: Algorithm, given: &BTreeMap<String, f64>) -> Result<Self, Fail> {
        let table = match algorithm {
            Algorithm::GradientBoosting => BOOSTING,
            Algorithm::Linear => LINEAR,
        };
        let mut used = BTreeMap::new();
        for (name, &value) in given {
            let Some(known) = table.iter().find(|known| known.name == name || known.aliases.contains(&name.as_str())) else {
                let list = table.iter().map(|known| format!("`{}`", known.name)).collect::<Vec<_>>().join(", ");
                let name: String = name.chars().take(100).collect();
                return Err(Fail::new(FailCode::Invalid, format!("there is no parameter `{name}`; there are {list}")));
            };
            let whole = !known.whole || value.fract() == 0.0;
            if !(known.min..=known.max).contains(&value) || !whole {
                let kind = if known.whole { "a whole number" } else { "a number" };
                let message = format!("`{name}` is {value}, not {kind} from {} to {}", known.min, known.max);
                return Err(Fail::new(FailCode::Invalid, message));
            }
            if used.insert(known.name.to_owned(), value).is_some() {
                return Err(Fail::new(FailCode::Invalid, format!("`{}` is given twice", known.name)));
            }
        }
        for known in table {
            used.entry(known.name.to_owned()).or_insert(known.default);
        }
        Ok(Self(used))
    }

    /// The value of a parameter of the algorithm.
    pub(crate) fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The same as a count.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.get(name) as usize
    }
}
