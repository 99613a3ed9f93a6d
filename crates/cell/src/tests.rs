//! The serve loop as the service sees it, on a thread instead of in a jail. The jailed twin is `tests/cell.rs`.

mod batching;
#[path = "../tests/client/mod.rs"]
mod client;
mod frames;

use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use client::{Client, assert_bits, fixture};
use serde_json::{Value, json};
use wire::{Batching, Fail, FailCode, FromCell, Inferred, ToCell};

use crate::engine::Engine;

/// The engine of all tests; `None`, said aloud, where there is none.
fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        let library = std::env::var_os("ORT_DYLIB_PATH")?;
        Some(Engine::start(library.as_ref()).unwrap())
    });
    if engine.is_none() {
        println!("SKIPPED: ORT_DYLIB_PATH is not set, there is no engine to test with");
    }
    engine.as_ref()
}

/// A loop on a thread.
fn cell() -> Option<Client> {
    let engine = engine()?;
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::Builder::new()
        .name("cell".into())
        .spawn(|| crate::serve::serve(engine, crate::link::Link::new(theirs.into())).unwrap())
        .unwrap();
    Some(Client::new(ours.into()))
}

fn refused(result: Result<Value, Fail>, code: FailCode, words: &str) {
    let fail = result.expect_err(words);
    assert!(fail.code == code && fail.message.contains(words), "expected {code:?} with `{words}`, got {:?}: {}", fail.code, fail.message);
}

#[test]
fn numbers_are_bit_equal_with_onnxruntime_in_python() {
    let Some(mut cell) = cell() else { return };
    let expected: Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() >= 9);
    for (slot, case) in (0..).zip(cases) {
        cell.load(slot, &fixture(&format!("{}.onnx", case["model"].as_str().unwrap()))).unwrap();
        let answer = cell.infer(slot, &case["request"].to_string()).unwrap();
        assert_bits(case, &answer);
        assert_eq!((&answer["model_name"], &answer["model_version"]), (&json!("iris"), &json!("3")));
    }
}

#[test]
fn what_a_model_takes_is_told_when_it_is_loaded() {
    let Some(mut cell) = cell() else { return };
    let info = cell.load(0, &fixture("zipmap.onnx")).unwrap();
    assert_eq!(serde_json::to_value(&info.inputs).unwrap(), json!([{"name": "X", "datatype": "FP32", "shape": [-1, 4]}]));
    assert_eq!(
        serde_json::to_value(&info.outputs).unwrap(),
        json!([{"name": "output_label", "datatype": "BYTES", "shape": [-1]}, {"name": "output_probability", "datatype": "FP32", "shape": [-1, -1]}])
    );
    assert!(info.producer == "skl2onnx" && info.nodes > 1 && info.opsets.iter().any(|o| o.starts_with("ai.onnx.ml:")), "{info:?}");
    assert!(!info.smoke_run && cell.admit(&fixture("zipmap.onnx"), 1000).unwrap().smoke_run);
    let answer = cell.infer(0, r#"{"inputs":[{"name":"X","shape":[1,4],"datatype":"FP32","data":[5,3,1,0.2]}]}"#).unwrap();
    assert_eq!(answer["outputs"][1]["parameters"]["labels"], json!(r#"["setosa","versicolor","virginica"]"#));
}

const TWO: &str = r#"{"inputs":[{"name":"x","shape":[2,4],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]},{"name":"scale","shape":[],"datatype":"FP32","data":[2]}]}"#;

#[test]
fn one_request_can_be_written_in_many_ways() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("two.onnx")).unwrap();
    let expected = cell.infer(0, TWO).unwrap();
    assert_eq!(expected["outputs"][0]["shape"], json!([2, 3]));
    let scale = r#"{"name":"scale","shape":[],"datatype":"FP32","data":[2]}"#;
    for body in [
        // Nested data, other order of fields, data before its shape, other order of inputs, white space, exponents.
        format!(r#"{{"inputs":[{{"name":"x","shape":[2,4],"datatype":"FP32","data":[[1,2,3,4],[5,6,7,8]]}},{scale}]}}"#),
        format!(r#"{{"inputs":[{scale},{{"data":[[1,2,3,4],[5,6,7,8]],"datatype":"FP32","shape":[2,4],"name":"x"}}]}}"#),
        format!(
            "\n{{ \"inputs\" :\t[ {scale} , {{ \"name\" : \"x\" , \"shape\" : [ 2 , 4 ] , \"datatype\" : \"FP32\" , \"data\" : [ 1e0 , 0.2E+1, 3.0,4 , 5 ,6,7,800e-2 ] }} ] }} \r\n"
        ),
        format!(
            r#"{{"parameters":{{"priority":3,"binary_data_output":false}},"inputs":[{{"name":"\u0078","parameters":{{"a":"b"}},"shape":[2,4],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]}},{scale}],"outputs":[]}}"#
        ),
        TWO.replacen('{', r#"{"model_name":"another","model_version":"9","#, 1),
    ] {
        assert_eq!(cell.infer(0, &body).unwrap(), expected, "{body}");
    }
    let answer =
        cell.infer(0, &TWO.replacen('{', r#"{"id":"a\"b ü","outputs":[{"name":"y","parameters":{"binary_data":false}}],"#, 1)).unwrap();
    assert_eq!((&answer["id"], &answer["outputs"]), (&json!("a\"b ü"), &expected["outputs"]));
    let wanted = r#"{"inputs":[{"name":"X","shape":[1,30],"datatype":"FP32","data":[DATA]}],"outputs":[{"name":"probabilities"}]}"#
        .replace("DATA", &["0.5"; 30].join(","));
    cell.load(1, &fixture("logistic.onnx")).unwrap();
    let answer = cell.infer(1, &wanted).unwrap();
    assert!(answer["outputs"].as_array().unwrap().len() == 1 && answer["outputs"][0]["name"] == "probabilities", "{answer}");
}

#[test]
fn wrong_requests_are_refused_in_the_users_words() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("two.onnx")).unwrap();
    let good = cell.infer(0, TWO).unwrap();
    let data = "[1,2,3,4,5,6,7,8]";
    let swap = |from: &str, to: &str| {
        assert!(TWO.contains(from), "{from}");
        TWO.replacen(from, to, 1)
    };
    let x = r#"{"name":"x","shape":[2,4],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]}"#;
    for (body, words) in [
        (String::new(), "expected an object with `inputs` at its end"),
        ("[]".into(), "expected an object with `inputs`"),
        ("{}".into(), "input `x` is missing: expected FP32 of shape [-1, 4]"),
        (swap(TWO, &TWO[..TWO.len() - 1]), "expected `,` or `}` at its end"),
        (format!("{TWO}x"), "expected the end of the body"),
        (format!("{TWO}{TWO}"), "expected the end of the body"),
        (swap("\"inputs\"", "\"input\""), "unknown field `input`"),
        (swap(r#"{"inputs""#, r#"{"inputs":[],"inputs""#), "`inputs` is given twice in the request"),
        (swap(r#""shape":[2,4]"#, r#""shape":[2,4],"shape":[2,4]"#), "`shape` is given twice in an input"),
        (swap(r#""shape":[2,4]"#, r#""shape":[2,4],"dtype":1"#), "an input has an unknown field `dtype`"),
        (swap(x, &format!("{x},{x}")), "input `x` is given twice"),
        (swap(&format!("{x},"), ""), "input `x` is missing"),
        (swap("\"x\"", "\"z\""), "the model has no input `z`: it has `x`, `scale`"),
        (swap("\"FP32\"", "\"FP64\""), "input `x`: expected datatype FP32, got `FP64`"),
        (swap("\"FP32\"", "\"fp32\""), "input `x`: expected datatype FP32, got `fp32`"),
        (swap("[2,4]", "[2,3]"), "input `x`: expected shape [-1, 4] (-1 is any), got [2, 3]"),
        (swap("[2,4]", "[8]"), "input `x`: expected shape [-1, 4]"),
        (swap("[2,4]", "[-2,4]"), "`-2` is not a dimension"),
        (swap("[2,4]", "[2.0,4]"), "`2.0` is not a dimension"),
        (swap("[2,4]", "[99999999999999999999,4]"), "`99999999999999999999` is not a dimension"),
        (swap("[2,4]", "[4611686018427387904,4]"), "the product of its dimensions overflows"),
        (swap("[2,4]", "[2147483648,4]"), "8589934592 elements are more than"),
        (swap("[2,4]", "[4000000,4]"), "asks for 16000000 elements, the whole body has"),
        (swap("[2,4]", "[3,4]"), "8 elements where shape [3, 4] asks for 12"),
        (swap("[2,4]", "[1,4]"), "more elements than the 4 of shape [1, 4]"),
        (swap("[2,4]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"), "more than 16 dimensions"),
        (swap(data, "[[1,2,3,4],[5,6,7]]"), "a list of dimension 1 has 3 elements"),
        (swap(data, "[[1,2,3,4],[5,6,7,8,9]]"), "a list of dimension 1 is longer than the 4"),
        (swap(data, "[[1,2,3,4]]"), "a list of dimension 0 has 1 elements"),
        (swap(data, "[[[1,2,3,4]],[[5,6,7,8]]]"), "lists nest deeper than the 2 dimensions"),
        (swap(data, "[1,2,3,4,[5,6,7,8]]"), "element 4"),
        (swap(data, "1"), "expected an array of elements"),
        (swap(data, "[1,2,3,4,5,6,7,NaN]"), "element 7"),
        (swap(data, "[1,2,3,4,5,6,7,Infinity]"), "element 7"),
        (swap(data, "[1,2,3,4,5,6,7,null]"), "element 7"),
        (swap(data, "[1,2,3,4,5,6,7,\"8\"]"), "element 7"),
        (swap(data, "[1,2,3,4,5,6,7,1e39]"), "input `x`: element 7: `1e39` is too large for FP32"),
        (swap(data, "[1,2,3,4,5,6,7,08]"), "without leading zeros"),
        (swap(data, "[1,2,3,4,5,6,7,]"), "element 7"),
        (swap(r#"{"inputs""#, r#"{"id":7,"inputs""#), "expected a string"),
        (swap(r#"{"inputs""#, &format!(r#"{{"id":"{}","inputs""#, "a".repeat(2000))), "`id` is longer than 1024 bytes"),
        (swap(r#"{"inputs""#, r#"{"id":"\ud800","inputs""#), "bad escape"),
        (swap(r#"{"inputs""#, r#"{"outputs":[{"name":"z"}],"inputs""#), "the model has no output `z`: it has `y`"),
        (swap(r#"{"inputs""#, r#"{"outputs":[{"name":"y"},{"name":"y"}],"inputs""#), "output `y` is asked for twice"),
        (swap(r#"{"inputs""#, r#"{"outputs":[{}],"inputs""#), "an output has no `name`"),
        (swap(r#"{"inputs""#, &format!(r#"{{"parameters":{{"a":{}}},"inputs""#, "[".repeat(100_000))), "nests deeper than 32"),
        (swap(r#""shape":[2,4],"#, ""), "input `x` has no `shape`"),
        (swap(r#","datatype":"FP32""#, ""), "input `x` has no `datatype`"),
        (swap(&format!(r#","data":{data}"#), ""), "input `x` has no `data`"),
        (swap(r#""name":"x","#, ""), "an input has no `name`"),
        (format!("{}{}", "{\"inputs\":", "[".repeat(1 << 20)), "expected an input"),
    ] {
        refused(cell.infer(0, &body), FailCode::Invalid, words);
    }
    let shared = r#","parameters":{"shared_memory_region":"r","shared_memory_byte_size":32}"#;
    refused(cell.infer(0, &swap(r#","data":[1,2,3,4,5,6,7,8]"#, shared)), FailCode::Unsupported, "shared memory");
    for (body, words) in [
        (swap(r#","data":[1,2,3,4,5,6,7,8]"#, r#","parameters":{"binary_data_size":32}"#), "of the binary data 0 bytes are left"),
        (swap(r#","data":[1,2,3,4,5,6,7,8]"#, r#","data":[1,2,3,4,5,6,7,8],"parameters":{"binary_data_size":32}"#), "both `data` and"),
        (swap(r#"{"inputs""#, r#"{"parameters":{"binary_data_output":1},"inputs""#), "`binary_data_output`: expected `true` or `false`"),
        (swap(r#"{"inputs""#, r#"{"outputs":[{"name":"y","parameters":{"classification":-1}}],"inputs""#), "give a count"),
    ] {
        refused(cell.infer(0, &body), FailCode::Invalid, words);
    }
    refused(cell.infer(9, TWO), FailCode::NoModel, "slot 9 holds no model");
    // Not UTF-8.
    let answer = cell.ask(&ToCell::Infer { slot: 0, body: bytes::Bytes::from_static(b"{\"id\":\"\xff\"}") }, None).unwrap();
    assert!(matches!(answer, FromCell::Fail(fail) if fail.message == "the body is not UTF-8 at byte 7"));
    assert_eq!(cell.infer(0, TWO).unwrap(), good, "nothing of the refused ones is left behind");
}

#[test]
fn integers_strings_and_booleans_are_checked() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("types.onnx")).unwrap();
    let expected: Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let case = expected["cases"].as_array().unwrap().iter().find(|case| case["model"] == "types").unwrap();
    for (input, wrong, words) in [
        ("u8", json!(256), "input `u8`: element 2: `256` is not a whole number from 0 to 255"),
        ("u8", json!(-1), "is not a whole number from 0 to 255"),
        ("i8", json!(128), "from -128 to 127"),
        ("i64", json!(9_223_372_036_854_775_808_u64), "from -9223372036854775808 to 9223372036854775807"),
        ("i64", json!(1.0), "`1.0` is not a whole number"),
        ("b", json!(1), "expected `true` or `false`"),
        ("b", json!("true"), "expected `true` or `false`"),
        ("f16", json!(65520), "`65520` is too large for FP16"),
        ("f32", json!(true), "expected a number"),
        ("s", json!(1), "expected a string"),
        ("s", json!("a\0b"), "NUL"),
    ] {
        let mut request = case["request"].clone();
        let inputs = request["inputs"].as_array_mut().unwrap();
        inputs.iter_mut().find(|i| i["name"] == input).unwrap()["data"][2] = wrong;
        refused(cell.infer(0, &request.to_string()), FailCode::Invalid, words);
    }
}

#[test]
fn what_a_model_does_wrong_is_its_failure() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("log.onnx")).unwrap();
    cell.load(1, &fixture("reshape.onnx")).unwrap();
    cell.load(2, &fixture("grow.onnx")).unwrap();
    refused(
        cell.infer(0, r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,-1]}]}"#),
        FailCode::ModelFailed,
        "output `y`: element 1 is not a finite number, which JSON cannot carry",
    );
    refused(cell.infer(0, r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[0]}]}"#), FailCode::ModelFailed, "element 0");
    let reshape = |to: i64| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[4],"datatype":"FP32","data":[1,2,3,4]}},{{"name":"shape","shape":[1],"datatype":"INT64","data":[{to}]}}]}}"#
        )
    };
    refused(cell.infer(1, &reshape(3)), FailCode::ModelFailed, "the model failed");
    assert_eq!(cell.infer(1, &reshape(-1)).unwrap()["outputs"][0]["data"], json!([1.0, 2.0, 3.0, 4.0]));
    refused(
        cell.infer(2, r#"{"inputs":[{"name":"shape","shape":[1],"datatype":"INT64","data":[20000000]}]}"#),
        FailCode::TooLarge,
        "longer than 64 MiB",
    );
}

#[test]
fn slots_are_filled_emptied_and_never_mixed() {
    let Some(mut cell) = cell() else { return };
    assert_eq!(cell.ask(&ToCell::Ping, None), Some(FromCell::Ready));
    cell.load(7, &fixture("two.onnx")).unwrap();
    assert_eq!(cell.load(7, &fixture("log.onnx")).unwrap_err().code, FailCode::Internal);
    assert_eq!(cell.load(u32::MAX, &fixture("log.onnx")).unwrap_err().code, FailCode::TooLarge);
    cell.infer(7, TWO).unwrap();
    assert_eq!(cell.ask(&ToCell::Unload { slot: 7 }, None), Some(FromCell::Ready));
    refused(cell.infer(7, TWO), FailCode::NoModel, "slot 7");
    assert!(matches!(cell.ask(&ToCell::Unload { slot: 7 }, None), Some(FromCell::Fail(fail)) if fail.code == FailCode::NoModel));
    cell.load(7, &fixture("log.onnx")).unwrap();
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let Some(mut cell) = cell() else { return };
    let model = fixture("two.onnx");
    let file = jail::memory::SealedFile::create(&model).unwrap();
    let mut sent = vec![
        cell.send(&ToCell::Ping, None).unwrap(),
        cell.send(&ToCell::Load { slot: 0, load: client::load(&model) }, Some(&file)).unwrap(),
    ];
    sent.push(cell.send(&ToCell::Load { slot: 1, load: client::load(&model) }, Some(&file)).unwrap());
    sent.extend((0..200).map(|i| cell.send(&ToCell::Infer { slot: i % 2, body: TWO.into() }, None).unwrap()));
    for id in sent {
        let (answered, answer) = cell.receive().unwrap();
        assert_eq!(answered, id);
        assert!(!matches!(answer, FromCell::Fail(_)), "{answer:?}");
    }
}

#[test]
fn a_job_pulls_its_source_and_other_requests_wait() {
    let Some(mut cell) = cell() else { return };
    let table = b"a,b\n1,x\n2,y\n".as_slice();
    let job = cell
        .send(&ToCell::Inspect(wire::Inspect { source_bytes: table.len() as u64, format: None, rows_max: 10, columns_max: 10 }), None)
        .unwrap();
    let (id, first) = cell.receive().unwrap();
    assert!(id == job && matches!(first, FromCell::Read { .. }), "{first:?}");
    // While it waits for its block: more pings than the queue takes.
    let pings: Vec<u64> = (0..=crate::link::QUEUED_MAX).map(|_| cell.send(&ToCell::Ping, None).unwrap()).collect();
    let (id, answer) = cell.receive().unwrap();
    assert!(id == *pings.last().unwrap() && matches!(&answer, FromCell::Fail(fail) if fail.code == FailCode::TooLarge), "{answer:?}");
    let mut next = first;
    let inspection = loop {
        match next {
            FromCell::Read { offset, bytes } => cell.block(job, &table[offset as usize..(offset + u64::from(bytes)) as usize]),
            FromCell::Inspected(inspection) => break inspection,
            other => panic!("{other:?}"),
        }
        next = cell.receive().unwrap().1;
    };
    assert_eq!((inspection.rows, inspection.columns.len()), (2, 2));
    for ping in &pings[..crate::link::QUEUED_MAX] {
        assert_eq!(cell.receive(), Some((*ping, FromCell::Ready)));
    }
    let block = cell.ask(&ToCell::Block(bytes::Bytes::new()), None);
    assert!(matches!(block, Some(FromCell::Fail(fail)) if fail.message == "a block that nobody asked for"));
}

/// Processor time of one prediction through the socket: parse, run, write, and both calls into the kernel.
///
///     ORT_DYLIB_PATH=… cargo test -p insula-cell --bin insula-cell -- --ignored --nocapture cpu_of_a_prediction
#[test]
#[ignore = "a measurement"]
fn cpu_of_a_prediction() {
    let Some(mut client) = cell() else { return };
    client.load(0, &fixture("logistic.onnx")).unwrap();
    let expected: Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let values = expected["cases"][0]["request"]["inputs"][0]["data"].as_array().unwrap();
    // In the order in which clients write the fields; digits as a person would write them, and as Python prints an f32.
    let body =
        |values: Vec<String>| format!(r#"{{"inputs":[{{"name":"X","shape":[1,30],"datatype":"FP32","data":[{}]}}]}}"#, values.join(","));
    let short = body(values.iter().map(|v| (v.as_f64().unwrap() as f32).to_string()).collect());
    let long = body(values.iter().map(ToString::to_string).collect());
    let thread = std::fs::read_dir("/proc/self/task").unwrap().map(|t| t.unwrap().path()).max().unwrap();
    let cpu_nanos = || -> u64 {
        let stat = std::fs::read_to_string(thread.join("schedstat")).unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    };
    client.load_joined(1, &fixture("logistic.onnx"), Batching { max_size: 64, window_us: 0 }).unwrap();
    let together = |batch| (1, "sent ahead and joined", batch, short.clone());
    for (slot, what, batch, body) in [
        (0, "one at a time", 1u64, short.clone()),
        (0, "sent ahead", 16, short.clone()),
        (0, "sent ahead", 64, short.clone()),
        (0, "sent ahead", 32, long),
        (1, "one at a time, to be joined", 1, short.clone()),
        together(16),
        together(64),
    ] {
        let body = bytes::Bytes::from(body);
        let rounds = 20_000 / batch;
        let started = (cpu_nanos(), std::time::Instant::now());
        for _ in 0..rounds {
            for _ in 0..batch {
                client.send(&ToCell::Infer { slot, body: body.clone() }, None).unwrap();
            }
            for _ in 0..batch {
                assert!(matches!(client.receive(), Some((_, FromCell::Inferred(_)))));
            }
        }
        let each = |nanos: u64| nanos as f64 / 1000.0 / (rounds * batch) as f64;
        println!(
            "{batch} {what}: {:.2} us CPU of the cell, {:.2} us wall a prediction ({} bytes)",
            each(cpu_nanos() - started.0),
            each(started.1.elapsed().as_nanos() as u64),
            body.len()
        );
    }
}

#[test]
fn scoring_says_what_the_inference_protocol_says() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("zipmap.onnx")).unwrap();
    let asked = r#"{"inputs":[{"name":"X","shape":[2,4],"datatype":"FP32","data":[5,3,1,0.2,6.5,3,5.5,2]}]}"#;
    let expected = cell.infer(0, asked).unwrap();
    let labels = expected["outputs"][0]["data"].clone();
    let chances: Vec<f64> = expected["outputs"][1]["data"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let classes = ["setosa", "versicolor", "virginica"];
    let zipped: Vec<Value> = chances
        .chunks(3)
        .map(|row| classes.iter().zip(row).map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>().into())
        .collect();
    let records = json!({"predictions": [
        {"output_label": labels[0], "output_probability": zipped[0]},
        {"output_label": labels[1], "output_probability": zipped[1]},
    ]});
    for body in [
        r#"{"dataframe_split":{"columns":["a","b","c","d"],"index":[0,1],"data":[[5,3,1,0.2],[6.5,3,5.5,2]]}}"#,
        r#"{"dataframe_split":{"data":[[5,3,1,0.2],[6.5,3,5.5,2]]},"params":{}}"#,
        r#"{"params":null,"dataframe_split":{"data":[[5,3,1,0.2],[6.5,3,5.5,2]],"columns":[0,1,2,3]}}"#,
        r#"{"dataframe_records":[{"a":5,"b":3,"c":1,"d":0.2},{"d":2,"c":5.5,"a":6.5,"b":3}]}"#,
    ] {
        assert_eq!(cell.score(0, body).unwrap(), records, "{body}");
    }
    let tensors = json!({"predictions": {"output_label": labels, "output_probability": zipped}});
    for body in [
        r#"{"inputs":[[5,3,1,0.2],[6.5,3,5.5,2]]}"#,
        r#"{"instances":[[5,3,1,0.2],[6.5,3,5.5,2]]}"#,
        r#"{"inputs":{"X":[[5,3,1,0.2],[6.5,3,5.5,2]]}}"#,
        r#"{"instances":[{"X":[5,3,1,0.2]},{"X":[6.5,3,5.5,2]}]}"#,
    ] {
        assert_eq!(cell.score(0, body).unwrap(), tensors, "{body}");
    }
}

#[test]
fn scoring_several_inputs_by_name() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("two.onnx")).unwrap();
    let expected = cell.infer(0, TWO).unwrap();
    let flat: Vec<f64> = expected["outputs"][0]["data"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let got = cell.score(0, r#"{"inputs":{"scale":2,"x":[[1,2,3,4],[5,6,7,8]]}}"#).unwrap();
    let name = expected["outputs"][0]["name"].as_str().unwrap();
    let rows: Vec<&[f64]> = flat.chunks(3).collect();
    assert_eq!(got["predictions"][name], json!(rows));
    refused(cell.score(0, r#"{"inputs":[[1,2,3,4]]}"#), FailCode::Invalid, "several inputs");
    refused(cell.score(0, r#"{"inputs":{"x":[[1,2,3,4]]}}"#), FailCode::Invalid, "input `scale` is missing");
    refused(cell.score(0, r#"{"inputs":{"x":[[1,2,3,4]],"x":[[1,2,3,4]]}}"#), FailCode::Invalid, "given twice");
    refused(cell.score(0, r#"{"dataframe_split":{"columns":["x"],"data":[[1]]}}"#), FailCode::Invalid, "column `scale` is missing");
}

#[test]
fn scoring_refuses_in_words() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("zipmap.onnx")).unwrap();
    let deep = format!(r#"{{"inputs":{}1{}}}"#, "[".repeat(64), "]".repeat(64));
    for (body, words) in [
        ("", "expected an object"),
        ("[]", "expected an object"),
        ("{}", "nothing to predict from"),
        (r#"{"columns":[],"data":[]}"#, "unknown field `columns`"),
        (r#"{"inputs":[[1,2,3,4]],"instances":[[1,2,3,4]]}"#, "give one of"),
        (r#"{"inputs":[[1,2,3,4]],"params":{"a":1}}"#, "`params` are not supported"),
        (r#"{"inputs":[[1,2,3,4]]}x"#, "the end of the body"),
        (r#"{"inputs":[[1,2,3]]}"#, "expected shape [-1, 4]"),
        (r#"{"inputs":[1,2,3,4]}"#, "expected shape [-1, 4]"),
        (r#"{"inputs":[[1,2,3,4],[1,2]]}"#, "a list has 2 elements where the first one has 4"),
        (r#"{"inputs":[[1,2,3,4],5]}"#, "expected a list"),
        (r#"{"inputs":[["1",2,3,4]]}"#, "expected a number"),
        (r#"{"inputs":{"Y":[[1,2,3,4]]}}"#, "no input `Y`"),
        (r#"{"instances":[{"X":[1,2,3,4]},{}]}"#, "input `X` is missing"),
        (r#"{"dataframe_split":{"columns":["a","b","c","d"]}}"#, "has no `data`"),
        (r#"{"dataframe_split":{"columns":["a","b","c","d"],"data":[[1,2,3]]}}"#, "row 0 has 3 values"),
        (r#"{"dataframe_split":{"columns":["a","b","c","d"],"data":[[1,2,3,4,5]]}}"#, "more than 4 values"),
        (r#"{"dataframe_split":{"columns":["a","b","c","d"],"data":[[1,2,3,4],[1,"x",3,4]]}}"#, "row 1, column `b`"),
        (r#"{"dataframe_records":[]}"#, "has no record"),
        (r#"{"dataframe_records":[{"a":1,"b":2,"c":3,"d":4},{"a":1,"b":2,"c":3}]}"#, "record 1 has no `d`"),
        (r#"{"dataframe_records":[{"a":1,"b":2,"c":3,"d":4},{"a":1,"b":2,"c":3,"e":4}]}"#, "record 1 has `e`"),
        (r#"{"dataframe_records":[{"a":1,"b":2,"c":3,"d":4},{"a":1,"a":1,"b":2,"c":3,"d":4}]}"#, "`a` twice"),
        (r#"{"inputs":[[1,2,3,4]"#, "expected `,`"),
        (deep.as_str(), "nests deeper"),
    ] {
        refused(cell.score(0, body), FailCode::Invalid, words);
    }
    // A missing number is not-a-number where the type has it: the model decides what to make of it.
    let missing = cell.score(0, r#"{"dataframe_split":{"data":[[5,null,1,0.2]]}}"#);
    assert!(missing.is_ok() || missing.is_err_and(|fail| fail.code == FailCode::ModelFailed));
    refused(cell.score(9, r#"{"inputs":[[1,2,3,4]]}"#), FailCode::NoModel, "slot 9");
}

#[test]
fn scoring_survives_any_bytes() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("zipmap.onnx")).unwrap();
    let seeds = [
        r#"{"dataframe_split":{"columns":["a","b","c","d"],"index":[0,1],"data":[[5,3,1,0.2],[6.5,3,5.5,null]]}}"#,
        r#"{"dataframe_records":[{"a":5,"b":3,"c":1,"d":0.2},{"d":2,"c":5.5,"a":6.5,"b":3}]}"#,
        r#"{"instances":[{"X":[5,3,1,0.2]},{"X":[6.5,3,5.5,2]}],"params":{}}"#,
        r#"{"inputs":{"X":[[5,3,1,0.2],[6.5,3,5.5,2]]}}"#,
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let pieces: Vec<&[u8]> = vec![b"[", b"]", b"{", b"}", b",", b":", b"\"", b"null", b"1e999", b"-", b"\\u", b"\xff", b"\"X\"", b"[[[["];
    for round in 0..4000 {
        let mut body = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..=random(3) {
            let at = random(body.len());
            match random(3) {
                0 => drop(body.splice(at..at, pieces[random(pieces.len())].iter().copied())),
                1 => drop(body.splice(at..(at + random(8)).min(body.len()), [])),
                _ => body[at] = pieces[random(pieces.len())][0],
            }
            if body.is_empty() {
                body.push(b'{');
            }
        }
        let answer = cell.ask(&ToCell::Score { slot: 0, body: body.clone().into() }, None).expect("the cell lives");
        let text = String::from_utf8_lossy(&body);
        match answer {
            FromCell::Inferred(answer) => drop(serde_json::from_slice::<Value>(&answer.body).unwrap_or_else(|_| panic!("{text}"))),
            FromCell::Fail(fail) => assert!(fail.code != FailCode::Internal, "{text}: {}", fail.message),
            other => panic!("{text}: {other:?}"),
        }
    }
}

/// From the text, because a number that went through `f64` is another one.
fn floats(data: &Value) -> Vec<f32> {
    data.as_array().unwrap().iter().map(|number| number.to_string().parse().unwrap()).collect()
}

/// Tensors in binary form: what comes back is what went in, wherever it lay in the body.
#[test]
fn binary_tensors_go_through_as_they_are() {
    let Some(mut cell) = cell() else { return };
    cell.load(0, &fixture("two.onnx")).unwrap();
    let expected = cell.infer(0, TWO).unwrap();
    let x: Vec<u8> = (1..=8u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
    let scale = 2f32.to_le_bytes();
    let json = r#"{"PAD":"","inputs":[{"name":"x","shape":[2,4],"datatype":"FP32","parameters":{"binary_data_size":32}},{"name":"scale","shape":[],"datatype":"FP32","parameters":{"binary_data_size":4}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    // Each of eight places modulo the alignment of any number.
    for pad in 0..8 {
        let json = json.replace(r#""PAD":"""#, &format!(r#""id":"{}""#, "a".repeat(pad)));
        let body = bytes::Bytes::from([json.as_bytes(), &x, &scale].concat());
        let json_bytes = u32::try_from(json.len()).unwrap();
        let answer = cell.ask(&ToCell::InferBinary { slot: 0, json_bytes, body }, None).unwrap();
        let FromCell::Inferred(Inferred { json_bytes: Some(json_bytes), body, .. }) = answer else { panic!("{answer:?}") };
        let (head, tensor) = body.split_at(json_bytes as usize);
        let head: Value = serde_json::from_slice(head).unwrap();
        assert_eq!((&head["outputs"][0]["shape"], &head["outputs"][0]["parameters"]["binary_data_size"]), (&json!([2, 3]), &json!(24)));
        let numbers: Vec<f32> = tensor.chunks(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect();
        assert_eq!(numbers, floats(&expected["outputs"][0]["data"]));
    }
}

mod hostile {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;
    use wire::protobuf::Writer;

    use super::*;

    /// The protocol's messages as another implementation knows them.
    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(string, tag = "1")]
        model_name: String,
        #[prost(string, tag = "2")]
        model_version: String,
        #[prost(string, tag = "3")]
        id: String,
        #[prost(message, repeated, tag = "5")]
        inputs: Vec<Input>,
        #[prost(bytes = "bytes", repeated, tag = "7")]
        raw_input_contents: Vec<Bytes>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Input {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        datatype: String,
        #[prost(int64, repeated, tag = "3")]
        shape: Vec<i64>,
        #[prost(message, optional, tag = "5")]
        contents: Option<Contents>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Contents {
        #[prost(float, repeated, tag = "6")]
        fp32_contents: Vec<f32>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Answer {
        #[prost(string, tag = "1")]
        model_name: String,
        #[prost(string, tag = "2")]
        model_version: String,
        #[prost(string, tag = "3")]
        id: String,
        #[prost(message, repeated, tag = "5")]
        outputs: Vec<Input>,
        #[prost(bytes = "bytes", repeated, tag = "6")]
        raw_output_contents: Vec<Bytes>,
    }

    fn request(x: &[f32], scale: f32, typed: bool) -> Request {
        let raw = |values: &[f32]| Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        let input = |name: &str, shape: Vec<i64>, values: &[f32]| Input {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape,
            contents: typed.then(|| Contents { fp32_contents: values.to_vec() }),
        };
        let rows = i64::try_from(x.len() / 4).unwrap();
        Request {
            model_name: "any".to_owned(),
            model_version: "3".to_owned(),
            id: "r".to_owned(),
            inputs: vec![input("x", vec![rows, 4], x), input("scale", vec![], &[scale])],
            raw_input_contents: if typed { vec![] } else { vec![raw(x), raw(&[scale])] },
        }
    }

    fn ask(cell: &mut Client, body: Vec<u8>) -> Result<Answer, Fail> {
        match cell.ask(&ToCell::InferGrpc { slot: 0, body: body.into() }, None).expect("the cell lives") {
            FromCell::Inferred(answer) => Ok(Answer::decode(answer.body).unwrap()),
            FromCell::Fail(fail) => Err(fail),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_another_implementation_writes_is_read_and_the_other_way_round() {
        let Some(mut cell) = cell() else { return };
        cell.load(0, &fixture("two.onnx")).unwrap();
        let expected = cell.infer(0, TWO).unwrap();
        let x = [1., 2., 3., 4., 5., 6., 7., 8.];
        for typed in [false, true] {
            let answer = ask(&mut cell, request(&x, 2., typed).encode_to_vec()).unwrap();
            assert_eq!((answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()), ("iris", "3", "r"));
            assert_eq!((answer.outputs[0].name.as_str(), &answer.outputs[0].shape), ("y", &vec![2, 3]));
            let numbers: Vec<f32> = answer.raw_output_contents[0].chunks(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect();
            assert_eq!(numbers, floats(&expected["outputs"][0]["data"]));
        }
    }

    #[test]
    fn a_message_that_names_a_model_twice_is_refused() {
        let Some(mut cell) = cell() else { return };
        cell.load(0, &fixture("two.onnx")).unwrap();
        let good = request(&[1., 2., 3., 4.], 1., false).encode_to_vec();
        let mut name = Writer::default();
        name.text(1, "other");
        let mut id = Writer::default();
        id.text(3, "another");
        for body in [[&good[..], name.as_bytes()].concat(), [name.as_bytes(), &good].concat(), [&good[..], id.as_bytes()].concat()] {
            let fail = ask(&mut cell, body).unwrap_err();
            assert!(fail.code == FailCode::Invalid && fail.message.contains("first fields"), "{}", fail.message);
        }
    }

    /// Never a panic, which would be a failure of the cell, and the cell goes on.
    #[test]
    fn damaged_messages_are_answered() {
        let Some(mut cell) = cell() else { return };
        cell.load(0, &fixture("two.onnx")).unwrap();
        let x = [1., 2., 3., 4.];
        let messages = [request(&x, 1., false).encode_to_vec(), request(&x, 1., true).encode_to_vec()];
        let mut runner = proptest::test_runner::TestRunner::new(proptest::test_runner::Config::with_cases(2000));
        let cell = std::cell::RefCell::new(cell);
        let damage = (
            any::<prop::sample::Index>(),
            any::<u8>(),
            any::<prop::sample::Index>(),
            any::<bool>(),
            prop::sample::select(messages.to_vec()),
        );
        runner
            .run(&damage, |(at, to, end, cut, message)| {
                let mut body = message;
                let at = at.index(body.len());
                body[at] = to;
                if cut {
                    body.truncate(end.index(body.len() + 1));
                }
                if let Err(fail) = ask(&mut cell.borrow_mut(), body) {
                    prop_assert!(fail.code != FailCode::Internal, "{}", fail.message);
                }
                Ok(())
            })
            .unwrap();
        let binary = (proptest::collection::vec(any::<u8>(), 0..80), 0u32..120);
        let head = br#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#;
        runner
            .run(&binary, |(tail, length)| {
                let body = Bytes::from([&head[..], &tail].concat());
                let json_bytes = length.min(u32::try_from(body.len()).unwrap());
                let answer = cell.borrow_mut().ask(&ToCell::InferBinary { slot: 0, json_bytes, body }, None).unwrap();
                prop_assert!(matches!(answer, FromCell::Fail(fail) if fail.code == FailCode::Invalid));
                Ok(())
            })
            .unwrap();
        ask(&mut cell.borrow_mut(), messages[0].clone()).unwrap();
    }
}
