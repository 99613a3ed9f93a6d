//! Requests that wait together, answered by one run.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use wire::protobuf::Writer;
use wire::{Batching, Fail, FailCode, FromCell, Inferred, Run, ToCell};

use super::cell;
use super::client::{Client, fixture};
use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};

/// Slot of the model as it is without batching, and with it.
const ALONE: u32 = 0;
const JOINED: u32 = 1;

type Answer = Result<Inferred, Fail>;
type Answers = Vec<Answer>;

fn taking(max_size: u32) -> Batching {
    Batching { max_size, window_us: 0 }
}

/// The same model in both slots.
fn both(model: &[u8], batching: Batching) -> Option<Client> {
    let mut cell = cell()?;
    cell.load(ALONE, model).unwrap();
    cell.load_joined(JOINED, model, batching).unwrap();
    Some(cell)
}

fn answer(message: FromCell) -> Answer {
    match message {
        FromCell::Inferred(inferred) => Ok(inferred),
        FromCell::Fail(fail) => Err(fail),
        other => panic!("{other:?}"),
    }
}

/// The question for the other slot.
fn to(slot: u32, message: &ToCell) -> ToCell {
    let mut message = message.clone();
    match &mut message {
        ToCell::Infer { slot: of, .. } | ToCell::InferGrpc { slot: of, .. } | ToCell::Score { slot: of, .. } => *of = slot,
        ToCell::InferBinary { slot: of, .. } => *of = slot,
        other => panic!("{other:?}"),
    }
    message
}

/// What each is told when it is asked alone, and when all wait together.
fn asked(cell: &mut Client, questions: &[ToCell]) -> (Answers, Answers) {
    let alone = questions.iter().map(|question| answer(cell.ask(&to(ALONE, question), None).unwrap())).collect();
    let together: Vec<ToCell> = questions.iter().map(|question| to(JOINED, question)).collect();
    let ids = cell.send_together(&together);
    let together = ids.iter().map(|id| {
        let (answered, message) = cell.receive().unwrap();
        assert_eq!(answered, *id, "in the order in which they were asked");
        answer(message)
    });
    (alone, together.collect())
}

fn bodies(answers: &[Answer]) -> Vec<Result<(Option<u32>, Bytes), String>> {
    let body = |answer: &Answer| match answer {
        Ok(inferred) => Ok((inferred.json_bytes, inferred.body.clone())),
        Err(fail) => Err(fail.message.clone()),
    };
    answers.iter().map(body).collect()
}

fn runs(answers: &[Answer]) -> Vec<Run> {
    answers.iter().filter_map(|answer| answer.as_ref().ok()?.run).collect()
}

fn oip(inputs: Value) -> ToCell {
    ToCell::Infer { slot: 0, body: json!({"inputs": inputs}).to_string().into() }
}

fn tensor(name: &str, datatype: &str, shape: &[usize], data: impl Into<Value>) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data.into()})
}

/// Different numbers for every question.
fn numbers(question: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| ((question * 31 + at * 7) % 113) as f32 / 8.0 + question as f32 / 64.0).collect()
}

/// Trees: the same bits in any company. One question in each protocol, of one row to three.
#[test]
fn everybody_gets_the_answer_to_its_own_question() {
    let Some(mut cell) = both(&fixture("boosting.onnx"), taking(64)) else { return };
    let width = cell.load(2, &fixture("boosting.onnx")).unwrap().inputs[0].shape[1] as usize;
    let name = "X";
    let question = |at: usize| {
        let rows = at % 3 + 1;
        let x = numbers(at, rows * width);
        let binary: Vec<u8> = x.iter().flat_map(|number| number.to_le_bytes()).collect();
        match at % 4 {
            0 => oip(json!([tensor(name, "FP32", &[rows, width], x)])),
            1 => {
                let input =
                    json!({"name": name, "datatype": "FP32", "shape": [rows, width], "parameters": {"binary_data_size": binary.len()}});
                let head = json!({"id": at.to_string(), "parameters": {"binary_data_output": true}, "inputs": [input]}).to_string();
                let json_bytes = u32::try_from(head.len()).unwrap();
                ToCell::InferBinary { slot: 0, json_bytes, body: [head.as_bytes(), &binary].concat().into() }
            }
            2 => {
                let rows: Vec<&[f32]> = x.chunks(width).collect();
                let columns: Vec<String> = (0..width).map(|at| at.to_string()).collect();
                ToCell::Score { slot: 0, body: json!({"dataframe_split": {"columns": columns, "data": rows}}).to_string().into() }
            }
            _ => {
                let mut input = Writer::default();
                input.text(1, name);
                input.text(2, "FP32");
                input.packed(3, &[i64::try_from(rows).unwrap(), i64::try_from(width).unwrap()]);
                let mut request = Writer::default();
                request.text(1, "any");
                request.text(3, &at.to_string());
                request.item(5, input.as_bytes());
                request.item(7, &binary);
                ToCell::InferGrpc { slot: 0, body: request.into_bytes().into() }
            }
        }
    };
    let questions: Vec<ToCell> = (0..40).map(question).collect();
    let (alone, together) = asked(&mut cell, &questions);
    assert_eq!(bodies(&alone), bodies(&together));
    // That this says something: nobody else's answer would have done.
    let mut shifted = bodies(&together);
    shifted.rotate_left(4);
    assert!(bodies(&alone).iter().zip(&shifted).all(|(own, other)| own != other), "answers that can be told apart");
    assert!(alone.iter().all(|answer| answer.as_ref().unwrap().run.is_none()), "nobody counts runs that are one a request");
    let runs = runs(&together);
    let rows: u32 = (0..40).map(|at| at % 3 + 1).sum();
    assert_eq!((runs.len(), runs.iter().map(|run| run.rows).sum::<u32>(), runs.iter().map(|run| run.batch).sum::<u32>()), (40, rows, rows));
    let executions: Vec<u32> = runs.iter().map(|run| run.batch).filter(|batch| *batch > 0).collect();
    assert!(executions.len() == 2 && executions.iter().all(|batch| *batch <= 64), "{executions:?}: 79 rows are two runs of at most 64");
}

/// Every datatype, texts among them, and maps with text keys: cut at the right places.
#[test]
fn every_type_is_joined_and_cut() {
    let Some(mut cell) = both(&fixture("types.onnx"), taking(64)) else { return };
    let question = |at: usize| {
        let texts: Vec<String> = (0..=at % 2).map(|row| "ü".repeat(at + row)).collect();
        let shape = [texts.len()];
        let number = |name: &str, datatype: &str| tensor(name, datatype, &shape, vec![at; shape[0]]);
        let flags: Vec<bool> = texts.iter().map(|_| at.is_multiple_of(3)).collect();
        oip(json!([
            tensor("b", "BOOL", &shape, flags),
            number("u8", "UINT8"),
            number("u16", "UINT16"),
            number("u32", "UINT32"),
            number("u64", "UINT64"),
            number("i8", "INT8"),
            number("i16", "INT16"),
            number("i32", "INT32"),
            number("i64", "INT64"),
            number("f16", "FP16"),
            number("f32", "FP32"),
            number("f64", "FP64"),
            tensor("s", "BYTES", &shape, texts),
        ]))
    };
    let questions: Vec<ToCell> = (1..20).map(question).collect();
    let (alone, together) = asked(&mut cell, &questions);
    assert_eq!(bodies(&alone), bodies(&together));
    assert_eq!(runs(&together).iter().filter(|run| run.batch > 0).count(), 1, "one run for all");

    let Some(mut cell) = both(&fixture("zipmap.onnx"), taking(64)) else { return };
    let questions: Vec<ToCell> =
        (0..20).map(|at| oip(json!([tensor("X", "FP32", &[1 + at % 2, 4], numbers(at, (1 + at % 2) * 4))]))).collect();
    let (alone, together) = asked(&mut cell, &questions);
    assert_eq!(runs(&together).iter().filter(|run| run.batch > 0).count(), 1);
    for (alone, together) in alone.iter().zip(&together) {
        let read = |answer: &Answer| serde_json::from_slice::<Value>(&answer.as_ref().unwrap().body).unwrap();
        let (alone, together) = (read(alone), read(together));
        assert_eq!(alone["outputs"][0], together["outputs"][0], "labels");
        assert_close(&alone["outputs"][1], &together["outputs"][1]);
    }
}

/// The same but for the last bits of a product, which the engine computes by other loops for more rows.
fn assert_close(one: &Value, other: &Value) {
    assert_eq!((&one["shape"], &one["parameters"]), (&other["shape"], &other["parameters"]));
    let floats = |of: &Value| of["data"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect::<Vec<_>>();
    for (one, other) in floats(one).iter().zip(floats(other)) {
        assert!((one - other).abs() < 1e-6, "{one} and {other}");
    }
}

#[test]
fn a_linear_model_differs_by_nothing_that_matters() {
    let Some(mut cell) = both(&fixture("logistic.onnx"), taking(64)) else { return };
    let questions: Vec<ToCell> = (0..40).map(|at| oip(json!([tensor("X", "FP32", &[1, 30], numbers(at, 30))]))).collect();
    let (alone, together) = asked(&mut cell, &questions);
    assert_eq!(runs(&together).iter().filter(|run| run.batch > 0).count(), 1);
    for (alone, together) in alone.into_iter().zip(together) {
        let (alone, together) = (alone.unwrap().body, together.unwrap().body);
        let (alone, together): (Value, Value) = (serde_json::from_slice(&alone).unwrap(), serde_json::from_slice(&together).unwrap());
        assert_eq!(alone["outputs"][0], together["outputs"][0]);
        assert_close(&alone["outputs"][1], &together["outputs"][1]);
    }
}

/// One node over a vector `x` of whole numbers.
fn vector(operator: &str, inputs: &[&str], initializer: Vec<TensorProto>) -> Vec<u8> {
    let node = NodeProto::new(operator, "", inputs, "y", vec![]);
    let graph = GraphProto {
        node: vec![node],
        name: "g".into(),
        initializer,
        input: vec![ValueInfoProto::rows("x", DataType::Int64, &[])],
        output: vec![ValueInfoProto::rows("y", DataType::Int64, &[])],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: 13 };
    ModelProto { ir_version: 7, graph: Some(graph), opset_import: vec![opset], ..Default::default() }.encode_to_vec()
}

fn vector_of(values: &[i64]) -> ToCell {
    oip(json!([tensor("x", "INT64", &[values.len()], values)]))
}

#[test]
fn one_bad_request_fails_nobody_else() {
    // An index that the table does not have ends a run.
    let table = vector("Gather", &["table", "x"], vec![TensorProto::int64("table", vec![4], vec![10, 11, 12, 13])]);
    let Some(mut cell) = both(&table, taking(64)) else { return };
    let unreadable = ToCell::Infer { slot: 0, body: Bytes::from_static(b"{\"inputs\":[") };
    let questions = [vector_of(&[0]), vector_of(&[1, 2]), unreadable, vector_of(&[3, 99]), vector_of(&[3]), vector_of(&[2, 1, 0])];
    let (alone, together) = asked(&mut cell, &questions);
    assert_eq!(bodies(&alone), bodies(&together));
    let codes: Vec<Option<FailCode>> = together.iter().map(|answer| answer.as_ref().err().map(|fail| fail.code)).collect();
    assert_eq!(codes, [None, None, Some(FailCode::Invalid), Some(FailCode::ModelFailed), None, None]);
    let (alone, together) = asked(&mut cell, &[vector_of(&[0]), vector_of(&[1])]);
    assert_eq!(bodies(&alone), bodies(&together));
    assert_eq!(runs(&together)[0].batch, 2, "and the next ones are joined again");

    // Nor who waits for the next run, because this one has no room.
    let Some(mut cell) = both(&table, taking(4)) else { return };
    let (alone, together) = asked(&mut cell, &[vector_of(&[0, 1]), vector_of(&[2, 99]), vector_of(&[3]), vector_of(&[1])]);
    assert_eq!(bodies(&alone), bodies(&together));
    assert_eq!(together.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);

    // What JSON cannot carry is the failure of whose rows it is.
    let Some(mut cell) = both(&fixture("log.onnx"), taking(64)) else { return };
    let log = |values: &[f32]| oip(json!([tensor("x", "FP32", &[values.len()], values)]));
    let (alone, together) = asked(&mut cell, &[log(&[1.0]), log(&[2.0, 0.0]), log(&[3.0, 4.0])]);
    assert_eq!(bodies(&alone), bodies(&together));
    assert!(together[1].as_ref().is_err_and(|fail| fail.message.contains("element 1")), "counted in its own rows");
    assert_eq!(runs(&together)[0].batch, 5, "one run");
}

#[test]
fn what_does_not_fit_together_is_run_apart() {
    // Rows that the model does not keep: found out by the first joined run, and not tried again.
    let Some(mut cell) = both(&vector("Unique", &["x"], vec![]), taking(64)) else { return };
    for _ in 0..2 {
        let (alone, together) = asked(&mut cell, &[vector_of(&[5, 5]), vector_of(&[4]), vector_of(&[5])]);
        assert_eq!(bodies(&alone), bodies(&together));
        let runs = runs(&together);
        assert!(runs.len() == 3 && runs.iter().all(|run| run.batch == run.rows), "each was run for itself: {runs:?}");
    }
    // An input without rows.
    let Some(mut cell) = both(&fixture("two.onnx"), taking(64)) else { return };
    let two = |at: usize| oip(json!([tensor("x", "FP32", &[1, 4], numbers(at, 4)), tensor("scale", "FP32", &[], vec![at])]));
    let (alone, together) = asked(&mut cell, &[two(1), two(2), two(3)]);
    assert_eq!(bodies(&alone), bodies(&together));
    // More rows than a run takes, inputs that do not agree, another shape.
    let Some(mut cell) = both(&fixture("boosting.onnx"), taking(2)) else { return };
    let width = cell.load(2, &fixture("boosting.onnx")).unwrap().inputs[0].shape[1] as usize;
    let x = |rows: usize, at: usize| oip(json!([tensor("X", "FP32", &[rows, width], numbers(at, rows * width))]));
    let wrong = oip(json!([tensor("X", "FP32", &[1, width + 1], numbers(0, width + 1))]));
    let (alone, together) = asked(&mut cell, &[x(1, 0), x(5, 1), wrong, x(1, 2), x(1, 3), x(1, 4)]);
    assert_eq!(bodies(&alone), bodies(&together));
    let batches: Vec<u32> = runs(&together).iter().map(|run| run.batch).collect();
    assert_eq!(batches, [1, 5, 1, 2, 0], "two of them are looked at together, and one of these cannot be read");
}

#[test]
fn answers_keep_their_order_when_requests_overtake_others() {
    let Some(mut cell) = both(&fixture("boosting.onnx"), taking(64)) else { return };
    let width = cell.load(2, &fixture("boosting.onnx")).unwrap().inputs[0].shape[1] as usize;
    let x = |slot: u32, at: usize| to(slot, &oip(json!([tensor("X", "FP32", &[1, width], numbers(at, width))])));
    let expected: Vec<FromCell> = (0..6).map(|at| cell.ask(&x(ALONE, at), None).unwrap()).collect();
    // Between them another model, and something that may not be overtaken.
    let sent = [x(JOINED, 0), x(2, 1), x(JOINED, 2), x(2, 3), ToCell::Unload { slot: JOINED }, x(JOINED, 5), x(2, 5)];
    let ids = cell.send_together(&sent);
    let answers: Vec<FromCell> = ids
        .iter()
        .map(|id| {
            let (answered, message) = cell.receive().unwrap();
            assert_eq!(answered, *id);
            message
        })
        .collect();
    let body = |message: &FromCell| answer(message.clone()).unwrap().body;
    for (at, question) in [(0, 0), (1, 1), (2, 2), (3, 3), (6, 5)] {
        assert_eq!(body(&answers[at]), body(&expected[question]), "answer {at}");
    }
    assert_eq!(answers[4], FromCell::Ready);
    assert!(matches!(&answers[5], FromCell::Fail(fail) if fail.code == FailCode::NoModel), "it came after the model had left");
    assert_eq!(answer(answers[0].clone()).unwrap().run.map(|run| run.batch), Some(2));
}

#[test]
fn company_is_waited_for_and_nobody_alone() {
    const WINDOW: Duration = Duration::from_secs(4);
    let batching = Batching { max_size: 8, window_us: u32::try_from(WINDOW.as_micros()).unwrap() };
    let Some(mut cell) = both(&fixture("boosting.onnx"), batching) else { return };
    let width = cell.load(2, &fixture("boosting.onnx")).unwrap().inputs[0].shape[1] as usize;
    let x = |at: usize| to(JOINED, &oip(json!([tensor("X", "FP32", &[1, width], numbers(at, width))])));
    let batches = |cell: &mut Client, count: usize| -> Vec<u32> {
        (0..count).map(|_| answer(cell.receive().unwrap().1).unwrap().run.unwrap().batch).collect()
    };
    let begun = Instant::now();
    for at in 0..20 {
        assert_eq!(answer(cell.ask(&x(at), None).unwrap()).unwrap().run.unwrap().batch, 1);
    }
    assert!(begun.elapsed() < WINDOW, "who asks alone does not wait: {:?}", begun.elapsed());
    cell.send_together(&[x(0), x(1)]);
    assert_eq!(batches(&mut cell, 2), [2, 0]);
    // There were two: the first waits for the second.
    let begun = Instant::now();
    cell.send(&x(2), None).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    cell.send(&x(3), None).unwrap();
    assert_eq!(batches(&mut cell, 2), [2, 0]);
    assert!(begun.elapsed() < WINDOW, "and no longer than until it is there: {:?}", begun.elapsed());
    // Somebody else's request is not kept waiting for that.
    let begun = Instant::now();
    cell.send_together(&[x(4), to(ALONE, &x(5))]);
    assert_eq!(batches(&mut cell, 1), [1]);
    assert!(answer(cell.receive().unwrap().1).unwrap().run.is_none() && begun.elapsed() < WINDOW);
}
