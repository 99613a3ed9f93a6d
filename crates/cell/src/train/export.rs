//! The ONNX file of a trained model. See the module above for its inputs and outputs.

use std::collections::BTreeSet;

use prost::Message;
use wire::{Algorithm, Task};

use super::boost::Forest;
use super::linear::Linear;
use super::tree::Node;
use super::{Classes, Encoding, Feature, Model};
use crate::onnx::{
    AttributeProto as Attribute, DOMAIN_ML, DataType, GraphProto, IR_VERSION, ModelProto, NodeProto, OPSET, OPSET_ML, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};

/// The input of a model whose features are all numbers.
const INPUT: &str = "input";
const LABEL: &str = "label";
const PROBABILITIES: &str = "probabilities";
const PREDICTION: &str = "prediction";

/// The file.
pub(super) fn onnx(
    model: &Model,
    features: &[Feature],
    classes: Option<&Classes>,
    task: Task,
    algorithm: Algorithm,
    target: &str,
) -> Vec<u8> {
    let mut graph = Graph::new(features);
    match model {
        Model::Forest(forest) => {
            let columns = graph.ordinals(features);
            graph.forest(forest, &columns, task);
        }
        Model::Linear(linear) => {
            let columns = graph.design(features, linear);
            graph.linear(linear, &columns, task);
        }
    }
    match classes {
        Some(classes) => graph.classes(classes),
        None => graph.proto.output.push(ValueInfoProto::rows(PREDICTION, DataType::Float, &[1])),
    }
    let names: Vec<&str> = features.iter().map(|feature| feature.name.as_str()).collect();
    let props = [
        ("features", serde_json::to_string(&names).unwrap_or_default()),
        ("target", target.to_owned()),
        ("task", format!("{task:?}").to_lowercase()),
        ("algorithm", if algorithm == Algorithm::Linear { "linear".to_owned() } else { "gradient_boosting".to_owned() }),
    ];
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "insula".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        opset_import: vec![opset("", OPSET), opset(DOMAIN_ML, OPSET_ML)],
        metadata_props: props.into_iter().map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value }).collect(),
        graph: Some(graph.proto),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

struct Graph {
    proto: GraphProto,
    /// Input of each feature; one for all when all are numbers.
    inputs: Vec<String>,
    single: bool,
}

impl Graph {
    fn new(features: &[Feature]) -> Self {
        let single = features.iter().all(|feature| matches!(feature.encoding, Encoding::Number));
        let mut proto = GraphProto { name: "insula".to_owned(), ..GraphProto::default() };
        if single {
            proto.input.push(ValueInfoProto::rows(INPUT, DataType::Float, &[features.len() as i64]));
            return Self { proto, inputs: Vec::new(), single };
        }
        let mut taken: BTreeSet<String> = [LABEL, PROBABILITIES, PREDICTION].map(str::to_owned).into();
        let mut inputs = Vec::new();
        for feature in features {
            let mut name = feature.name.clone();
            while name.starts_with("insula/") || !taken.insert(name.clone()) {
                name = format!("{}_", name.replace("insula/", "insula_"));
            }
            let elem_type = if matches!(feature.encoding, Encoding::Number) { DataType::Float } else { DataType::String };
            proto.input.push(ValueInfoProto::rows(&name, elem_type, &[1]));
            inputs.push(name);
        }
        Self { proto, inputs, single }
    }

    fn node(&mut self, op_type: &str, inputs: &[&str], output: &str, attributes: Vec<Attribute>) {
        self.proto.node.push(NodeProto::new(op_type, "", inputs, output, attributes));
    }

    fn ml(&mut self, op_type: &str, inputs: &[&str], output: &str, attributes: Vec<Attribute>) {
        self.proto.node.push(NodeProto::new(op_type, DOMAIN_ML, inputs, output, attributes));
    }

    fn concat(&mut self, parts: &[String], output: &str) {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.node("Concat", &parts, output, vec![Attribute::int("axis", 1)]);
    }

    /// All features as one tensor of numbers; a text is its position, an unknown or empty one is missing.
    fn ordinals(&mut self, features: &[Feature]) -> String {
        if self.single {
            return INPUT.to_owned();
        }
        let inputs = self.inputs.clone();
        let mut parts = Vec::new();
        for (index, (feature, input)) in features.iter().zip(inputs).enumerate() {
            let Encoding::Text(texts) = &feature.encoding else {
                parts.push(input);
                continue;
            };
            let part = format!("insula/ordinal{index}");
            let attributes = vec![
                Attribute::strings("keys_strings", texts),
                Attribute::floats("values_floats", (0..texts.len()).map(|position| position as f32).collect()),
                Attribute::float("default_float", f32::NAN),
            ];
            self.ml("LabelEncoder", &[&input], &part, attributes);
            parts.push(part);
        }
        self.concat(&parts, "insula/columns");
        "insula/columns".to_owned()
    }

    /// The columns of a linear model.
    fn design(&mut self, features: &[Feature], linear: &Linear) -> String {
        let inputs = self.inputs.clone();
        let input = |feature: usize| inputs.get(feature).cloned().unwrap_or_default();
        let mut parts = Vec::new();
        if !linear.design.numbers.is_empty() {
            let numbers = if self.single {
                INPUT.to_owned()
            } else {
                let names: Vec<String> = linear.design.numbers.iter().map(|&(feature, ..)| input(feature)).collect();
                self.concat(&names, "insula/numbers");
                "insula/numbers".to_owned()
            };
            let attributes = vec![
                Attribute::floats("offset", linear.design.numbers.iter().map(|&(_, mean, _)| mean).collect()),
                Attribute::floats("scale", linear.design.numbers.iter().map(|&(_, _, scale)| scale).collect()),
            ];
            self.ml("Scaler", &[&numbers], "insula/scaled", attributes);
            let attributes = vec![Attribute::floats("imputed_value_floats", vec![0.0]), Attribute::float("replaced_value_float", f32::NAN)];
            self.ml("Imputer", &["insula/scaled"], "insula/imputed", attributes);
            parts.push("insula/imputed".to_owned());
        }
        for &(index, count) in &linear.design.texts {
            let Some(Feature { encoding: Encoding::Text(texts), .. }) = features.get(index) else { continue };
            let (wide, shape, flat) = (format!("insula/wide{index}"), format!("insula/shape{index}"), format!("insula/flat{index}"));
            let attributes = vec![Attribute::strings("cats_strings", texts), Attribute::int("zeros", 1)];
            self.ml("OneHotEncoder", &[&input(index)], &wide, attributes);
            self.proto.initializer.push(TensorProto::int64(&shape, vec![2], vec![-1, count as i64]));
            self.node("Reshape", &[&wide, &shape], &flat, Vec::new());
            parts.push(flat);
        }
        if let [only] = parts.as_slice() {
            return only.clone();
        }
        self.concat(&parts, "insula/columns");
        "insula/columns".to_owned()
    }

    fn linear(&mut self, linear: &Linear, columns: &str, task: Task) {
        let (width, outputs) = (linear.design.width(), linear.weights.len());
        let weights = linear.weights.concat();
        self.proto.initializer.push(TensorProto::float("insula/weights", vec![outputs as i64, width as i64], weights));
        self.proto.initializer.push(TensorProto::float("insula/intercepts", vec![outputs as i64], linear.intercepts.clone()));
        let output = if task == Task::Regression { PREDICTION } else { "insula/scores" };
        let attributes = vec![Attribute::int("transB", 1)];
        self.node("Gemm", &[columns, "insula/weights", "insula/intercepts"], output, attributes);
        self.probabilities(outputs, task);
    }

    fn forest(&mut self, forest: &Forest, columns: &str, task: Task) {
        let output = if task == Task::Regression { PREDICTION } else { "insula/scores" };
        self.ml("TreeEnsembleRegressor", &[columns], output, Nodes::new(forest).attributes(forest));
        self.probabilities(forest.base.len(), task);
    }

    /// From `insula/scores` to probabilities.
    fn probabilities(&mut self, outputs: usize, task: Task) {
        if task == Task::Regression {
            return;
        }
        if outputs > 1 {
            self.node("Softmax", &["insula/scores"], PROBABILITIES, vec![Attribute::int("axis", 1)]);
            return;
        }
        self.proto.initializer.push(TensorProto::float("insula/one", vec![1], vec![1.0]));
        self.node("Sigmoid", &["insula/scores"], "insula/second", Vec::new());
        self.node("Sub", &["insula/one", "insula/second"], "insula/first", Vec::new());
        self.concat(&["insula/first".to_owned(), "insula/second".to_owned()], PROBABILITIES);
    }

    /// From probabilities to the label; declares both outputs.
    fn classes(&mut self, classes: &Classes) {
        let (names, elem_type) = match classes {
            Classes::Integers(labels) => (TensorProto::int64("insula/labels", vec![labels.len() as i64], labels.clone()), DataType::Int64),
            Classes::Texts(labels) => (TensorProto::string("insula/labels", vec![labels.len() as i64], labels), DataType::String),
        };
        self.proto.initializer.push(names);
        self.node("ArgMax", &[PROBABILITIES], "insula/best", vec![Attribute::int("axis", 1), Attribute::int("keepdims", 0)]);
        self.node("Gather", &["insula/labels", "insula/best"], LABEL, vec![Attribute::int("axis", 0)]);
        self.proto.output.push(ValueInfoProto::rows(LABEL, elem_type, &[]));
        self.proto.output.push(ValueInfoProto::rows(PROBABILITIES, DataType::Float, &[classes.len() as i64]));
    }
}

/// The arrays of a `TreeEnsembleRegressor`.
#[derive(Default)]
struct Nodes {
    trees: Vec<i64>,
    ids: Vec<i64>,
    features: Vec<i64>,
    modes: Vec<&'static str>,
    values: Vec<f32>,
    yes: Vec<i64>,
    no: Vec<i64>,
    missing_yes: Vec<i64>,
    target_trees: Vec<i64>,
    target_nodes: Vec<i64>,
    targets: Vec<i64>,
    weights: Vec<f32>,
}

impl Nodes {
    fn new(forest: &Forest) -> Self {
        let mut nodes = Self::default();
        for (number, (output, tree)) in forest.trees.iter().enumerate() {
            for (id, node) in tree.nodes.iter().enumerate() {
                nodes.trees.push(number as i64);
                nodes.ids.push(id as i64);
                match node {
                    Node::Split { feature, threshold, missing_left, left, right, .. } => {
                        nodes.push("BRANCH_LEQ", *feature, *threshold, [*left, *right], *missing_left);
                    }
                    Node::Leaf(weight) => {
                        nodes.push("LEAF", 0, 0.0, [0, 0], false);
                        nodes.target_trees.push(number as i64);
                        nodes.target_nodes.push(id as i64);
                        nodes.targets.push(*output as i64);
                        nodes.weights.push(*weight);
                    }
                }
            }
        }
        nodes
    }

    fn push(&mut self, mode: &'static str, feature: usize, value: f32, [yes, no]: [usize; 2], missing_yes: bool) {
        self.modes.push(mode);
        self.features.push(feature as i64);
        self.values.push(value);
        self.yes.push(yes as i64);
        self.no.push(no as i64);
        self.missing_yes.push(i64::from(missing_yes));
    }

    fn attributes(self, forest: &Forest) -> Vec<Attribute> {
        vec![
            Attribute::int("n_targets", forest.base.len() as i64),
            Attribute::floats("base_values", forest.base.clone()),
            Attribute::string("aggregate_function", "SUM"),
            Attribute::string("post_transform", "NONE"),
            Attribute::ints("nodes_treeids", self.trees),
            Attribute::ints("nodes_nodeids", self.ids),
            Attribute::ints("nodes_featureids", self.features),
            Attribute::strings("nodes_modes", self.modes),
            Attribute::floats("nodes_values", self.values),
            Attribute::ints("nodes_truenodeids", self.yes),
            Attribute::ints("nodes_falsenodeids", self.no),
            Attribute::ints("nodes_missing_value_tracks_true", self.missing_yes),
            Attribute::ints("target_treeids", self.target_trees),
            Attribute::ints("target_nodeids", self.target_nodes),
            Attribute::ints("target_ids", self.targets),
            Attribute::floats("target_weights", self.weights),
        ]
    }
}
