//! Small ONNX files, written by hand: one that multiplies, one that takes as much memory as asked, one that runs for as long as asked.

/// A length-delimited field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A number.
fn number(number: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(number) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = vec![];
    while value > 127 {
        out.push((value as u8 & 127) | 128);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

const FLOAT: u64 = 1;
const INT64: u64 = 7;
const BOOL: u64 = 9;

/// `None` is a dimension left open.
fn value(name: &str, kind: u64, shape: &[Option<u64>]) -> Vec<u8> {
    let dimension = |size: &Option<u64>| field(1, &size.map_or_else(|| field(2, b"n"), |size| number(1, size)));
    let shape: Vec<u8> = shape.iter().flat_map(dimension).collect();
    let tensor = [number(1, kind), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|name| field(1, name.as_bytes()));
    let outputs = outputs.iter().flat_map(|name| field(2, name.as_bytes()));
    let attributes = attributes.iter().flat_map(|attribute| field(5, attribute));
    inputs.chain(outputs).chain(field(4, operator.as_bytes())).chain(attributes).collect()
}

fn graph(nodes: &[Vec<u8>], initializers: &[Vec<u8>], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let nodes = nodes.iter().flat_map(|node| field(1, node));
    let initializers = initializers.iter().flat_map(|tensor| field(5, tensor));
    let inputs = inputs.iter().flat_map(|value| field(11, value));
    let outputs = outputs.iter().flat_map(|value| field(12, value));
    nodes.chain(field(2, b"g")).chain(initializers).chain(inputs).chain(outputs).collect()
}

fn model(graph: &[u8]) -> Vec<u8> {
    [number(1, 8), field(2, b"insula-tests"), field(7, graph), field(8, &number(2, 13))].concat()
}

fn scalar(name: &str, value: f32) -> Vec<u8> {
    [number(2, FLOAT), field(8, name.as_bytes()), field(9, &value.to_le_bytes())].concat()
}

/// `y = x · k`, for a vector of any length.
pub(crate) fn times(k: f32) -> Vec<u8> {
    let vector = |name| value(name, FLOAT, &[None]);
    model(&graph(&[node("Mul", &["x", "k"], &["y"], &[])], &[scalar("k", k)], &[vector("x")], &[vector("y")]))
}

/// As [`times`] of 2, for whole numbers that are less than `numbers`, of which it keeps a table in memory.
pub(crate) fn heavy(numbers: usize) -> Vec<u8> {
    let vector = |name| value(name, FLOAT, &[None]);
    let table = [number(1, numbers as u64), number(2, FLOAT), field(8, b"table"), field(9, &2f32.to_le_bytes().repeat(numbers))].concat();
    let to = [field(1, b"to"), number(3, INT64), [varint(20 << 3), varint(2)].concat()].concat();
    let nodes =
        [node("Cast", &["x"], &["at"], &[to]), node("Gather", &["table", "at"], &["k"], &[]), node("Mul", &["x", "k"], &["y"], &[])];
    model(&graph(&nodes, &[table], &[vector("x")], &[vector("y")]))
}

/// `y` is the sum of `shape[0]` zeros, all of them in memory.
pub(crate) fn zeros() -> Vec<u8> {
    let nodes = [node("ConstantOfShape", &["shape"], &["z"], &[]), node("ReduceSum", &["z"], &["y"], &[])];
    model(&graph(&nodes, &[], &[value("shape", INT64, &[Some(1)])], &[value("y", FLOAT, &[Some(1)])]))
}

/// As [`times`] to its caller, but fails on every vector of less than a thousand.
pub(crate) fn fails() -> Vec<u8> {
    let vector = |name| value(name, FLOAT, &[None]);
    let far = [number(1, 1), number(2, INT64), field(8, b"far"), field(9, &1000i64.to_le_bytes())].concat();
    model(&graph(&[node("Gather", &["x", "far"], &["y"], &[])], &[far], &[vector("x")], &[vector("y")]))
}

/// As [`times`] to its caller, but for one positive number it never comes to an end.
pub(crate) fn endless() -> Vec<u8> {
    let vector = |name| value(name, FLOAT, &[None]);
    let body_inputs = [value("i", INT64, &[]), value("go", BOOL, &[]), value("a", FLOAT, &[None])];
    let body_outputs = [value("on", BOOL, &[]), value("b", FLOAT, &[None])];
    let body_nodes = [node("Identity", &["go"], &["on"], &[]), node("Add", &["a", "a"], &["b"], &[])];
    let body = graph(&body_nodes, &[], &body_inputs, &body_outputs);
    let body = [field(1, b"body"), field(6, &body), [varint(20 << 3), varint(5)].concat()].concat();
    let to = [field(1, b"to"), number(3, INT64), [varint(20 << 3), varint(2)].concat()].concat();
    let nodes = [
        node("Mul", &["x", "many"], &["far"], &[]),
        node("Cast", &["far"], &["turns"], &[to]),
        node("Loop", &["turns", "", "x"], &["y"], &[body]),
    ];
    model(&graph(&nodes, &[scalar("many", 1e12)], &[vector("x")], &[vector("y")]))
}

/// Counts to `m[0]`, one step at a time.
pub(crate) fn counts() -> Vec<u8> {
    let body_inputs = [value("i", INT64, &[]), value("go", BOOL, &[]), value("a", FLOAT, &[Some(1)])];
    let body_outputs = [value("on", BOOL, &[]), value("b", FLOAT, &[Some(1)])];
    let body_nodes = [node("Identity", &["go"], &["on"], &[]), node("Add", &["a", "one"], &["b"], &[])];
    let one = [number(1, 1), number(2, FLOAT), field(8, b"one"), field(9, &1f32.to_le_bytes())].concat();
    let body = graph(&body_nodes, &[one], &body_inputs, &body_outputs);
    let attribute = [field(1, b"body"), field(6, &body), [varint(20 << 3), varint(5)].concat()].concat();
    let nodes = [node("Loop", &["m", "", "x"], &["y"], &[attribute])];
    let inputs = [value("m", INT64, &[Some(1)]), value("x", FLOAT, &[Some(1)])];
    model(&graph(&nodes, &[], &inputs, &[value("y", FLOAT, &[Some(1)])]))
}

/// As [`counts`] for any number of rows: all count to the greatest `m` among them, from their own `x`.
pub(crate) fn counts_together() -> Vec<u8> {
    let body_inputs = [value("i", INT64, &[]), value("go", BOOL, &[]), value("a", FLOAT, &[None])];
    let body_outputs = [value("on", BOOL, &[]), value("b", FLOAT, &[None])];
    let body_nodes = [node("Identity", &["go"], &["on"], &[]), node("Add", &["a", "one"], &["b"], &[])];
    let one = [number(1, 1), number(2, FLOAT), field(8, b"one"), field(9, &1f32.to_le_bytes())].concat();
    let body = graph(&body_nodes, &[one], &body_inputs, &body_outputs);
    let attribute = [field(1, b"body"), field(6, &body), [varint(20 << 3), varint(5)].concat()].concat();
    let nodes = [node("ReduceMax", &["m"], &["most"], &[]), node("Loop", &["most", "", "x"], &["y"], &[attribute])];
    let inputs = [value("m", INT64, &[None]), value("x", FLOAT, &[None])];
    model(&graph(&nodes, &[], &inputs, &[value("y", FLOAT, &[None])]))
}

/// A request for [`times`].
pub(crate) fn ask_times(x: f32) -> String {
    serde_json::json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [x]}]}).to_string()
}

/// A request for [`zeros`].
pub(crate) fn ask_zeros(length: u64) -> String {
    serde_json::json!({"inputs": [{"name": "shape", "shape": [1], "datatype": "INT64", "data": [length]}]}).to_string()
}

/// A request for [`counts`].
pub(crate) fn ask_counts(m: u64) -> String {
    let m = serde_json::json!({"name": "m", "shape": [1], "datatype": "INT64", "data": [m]});
    let x = serde_json::json!({"name": "x", "shape": [1], "datatype": "FP32", "data": [0.0]});
    serde_json::json!({"inputs": [m, x]}).to_string()
}

/// The only number of an answer.
pub(crate) fn number_of(answer: &serde_json::Value) -> f64 {
    answer["outputs"][0]["data"][0].as_f64().unwrap_or_else(|| panic!("no number in {answer}"))
}
