//! The real thing: the built program, started by the real launcher, its cells in the real jail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test program"
)]

mod client;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use client::{Client, assert_bits, fixture};
use jail::memory::SealedFile;
use jail::zygote::{Cell, Exit, Launcher};
use jail::{Floor, Limits};
use wire::{FailCode, FromCell, ToCell};

const PROGRAM: &str = env!("CARGO_BIN_EXE_insula-cell");
/// How long a death may take to be noticed.
const DEATH_MAX: Duration = Duration::from_secs(10);

fn limits() -> Limits {
    Limits { memory_bytes: 512 << 20, cpu_percent: 100, cpu_weight: 1, cpu_seconds_max: Some(60), descriptors_max: 32 }
}

fn library() -> Option<String> {
    let library = std::env::var("ORT_DYLIB_PATH").ok();
    if library.is_none() {
        println!("SKIPPED: ORT_DYLIB_PATH is not set, there is no engine to test with");
    }
    library
}

fn environment(library: &str) -> Vec<(String, String)> {
    vec![("ORT_DYLIB_PATH".into(), library.into()), ("ORT_DISABLE_TELEMETRY".into(), "1".into())]
}

fn launcher() -> Option<Launcher> {
    let launcher = Launcher::start(PROGRAM.as_ref(), &["zygote"], &environment(&library()?), Floor::Development).unwrap();
    println!("{}", launcher.report());
    Some(launcher)
}

/// The same under gVisor's kernel.
fn gvisor() -> Option<Launcher> {
    let found = jail::gvisor::find(std::env::var_os("PATH").as_deref());
    assert!(found.is_some() || std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_REQUIRE is set, and there is no runsc");
    let Some(runsc) = found else {
        println!("SKIPPED: there is no runsc");
        return None;
    };
    let launcher = Launcher::start_gvisor(PROGRAM.as_ref(), &["keeper"], &environment(&library()?), &runsc, Floor::Development).unwrap();
    println!("{}", launcher.report());
    Some(launcher)
}

fn spawn(launcher: &Launcher) -> (Cell, Client) {
    let mut cell = launcher.spawn(&limits()).unwrap();
    let socket = cell.take_socket().unwrap();
    let client = if launcher.report().gvisor.is_some() { Client::in_pieces(socket) } else { Client::new(socket) };
    (cell, client)
}

fn exit(cell: &mut Cell) -> Exit {
    let (sender, receiver) = mpsc::channel();
    cell.on_exit(move |exit| {
        let _ = sender.send(exit);
    });
    receiver.recv_timeout(DEATH_MAX).expect("the cell ends")
}

#[test]
fn a_jailed_cell_loads_predicts_admits_and_unloads() {
    let Some(launcher) = launcher() else { return };
    loads_predicts_admits_and_unloads(&launcher);
}

#[test]
fn a_cell_under_gvisor_does_the_same() {
    let Some(launcher) = gvisor() else { return };
    loads_predicts_admits_and_unloads(&launcher);
    // Pieces that no model follows, and a model that is not what was announced.
    let (_cell, mut client) = spawn(&launcher);
    client.send(&ToCell::Piece(bytes::Bytes::from_static(b"stray")), None).unwrap();
    assert_eq!(client.admit(&fixture("two.onnx"), 1000).unwrap_err().code, FailCode::Internal);
    client.load(0, &fixture("two.onnx")).unwrap();
    drop(client);
    // A jailed cell takes a piece for what it is: a broken word.
    let Some(jailed) = self::launcher() else { return };
    let (mut cell, mut client) = spawn(&jailed);
    assert_eq!(client.ask(&ToCell::Piece(bytes::Bytes::from_static(b"stray")), None), None);
    assert_eq!(exit(&mut cell), Exit::Code(0));
}

fn loads_predicts_admits_and_unloads(launcher: &Launcher) {
    let (mut cell, mut client) = spawn(launcher);
    let expected: serde_json::Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    for (slot, case) in (0..).zip(expected["cases"].as_array().unwrap()) {
        let model = fixture(&format!("{}.onnx", case["model"].as_str().unwrap()));
        let info = client.load(slot, &model).unwrap();
        assert!(info.resident_bytes > 0 && info.resident_bytes < 50 << 20, "{info:?}");
        assert_bits(case, &client.infer(slot, &case["request"].to_string()).unwrap());
        let admitted = client.admit(&model, 1000).unwrap();
        assert_eq!((&admitted.inputs, &admitted.outputs, admitted.nodes), (&info.inputs, &info.outputs, info.nodes));
        assert_eq!(client.ask(&ToCell::Unload { slot }, None), Some(FromCell::Ready));
        assert_eq!(client.infer(slot, "{}").unwrap_err().code, FailCode::NoModel);
    }
    // What the engine would print to a terminal (its log of a failed run) must not cost the cell its life.
    client.load(0, &fixture("reshape.onnx")).unwrap();
    let body = r#"{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[1,2,3,4]},{"name":"shape","shape":[1],"datatype":"INT64","data":[3]}]}"#;
    assert_eq!(client.infer(0, body).unwrap_err().code, FailCode::ModelFailed);
    assert_eq!(client.admit(b"PK\x03\x04", 10).unwrap_err().code, FailCode::ModelRefused);
    assert_eq!(client.ask(&ToCell::Ping, None), Some(FromCell::Ready));
    // The service hangs up: the cell ends by itself, in order.
    drop(client);
    assert_eq!(exit(&mut cell), Exit::Code(0));
}

/// A model that nobody can tell from `model` but for its size: protocol buffers merge what is repeated, so a second graph brings a weight more.
fn heavier(model: &[u8], weight_bytes: usize) -> Vec<u8> {
    let length = |mut bytes: usize| {
        let mut varint = Vec::new();
        while bytes >= 0x80 {
            varint.push((bytes & 0x7f) as u8 | 0x80);
            bytes >>= 7;
        }
        varint.push(bytes as u8);
        varint
    };
    let field = |number: u8, body: &[u8]| [&[number << 3 | 2][..], &length(body.len()), body].concat();
    let dims_and_type = [&[1 << 3][..], &length(weight_bytes / 4), &[2 << 3, 1]].concat();
    let weight = [dims_and_type, field(8, b"ballast"), field(9, &vec![1; weight_bytes])].concat();
    [model, &field(7, &field(5, &weight))].concat()
}

/// Large models are loaded in a room of huge pages: in the jail, with the same bits, and the room is given back.
#[test]
fn a_large_model_answers_the_same_bits_and_leaves_no_room_behind() {
    let Some(launcher) = launcher() else { return };
    let (cell, mut client) = spawn(&launcher);
    let expected: serde_json::Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let large = ["logistic", "network", "boosting"];
    let cases = expected["cases"].as_array().unwrap().iter().filter(|case| large.contains(&case["model"].as_str().unwrap()));
    let mut seen = 0;
    for (slot, case) in (0..).zip(cases) {
        let model = fixture(&format!("{}.onnx", case["model"].as_str().unwrap()));
        let info = client.load(slot, &heavier(&model, 24 << 20)).unwrap();
        assert!(info.resident_bytes < 8 << 20, "a weight that no node uses is not kept: {info:?}");
        assert_bits(case, &client.infer(slot, &case["request"].to_string()).unwrap());
        seen += 1;
    }
    assert!(seen >= large.len());
    let held = cell.usage().memory_bytes;
    assert!(held < 32 << 20, "{held} bytes are held where three models were loaded that need few");
}

#[test]
fn a_job_runs_in_the_jail() {
    let Some(launcher) = launcher() else { return };
    job(&launcher);
}

#[test]
fn a_job_runs_under_gvisor() {
    let Some(launcher) = gvisor() else { return };
    job(&launcher);
}

fn job(launcher: &Launcher) {
    let (_cell, mut client) = spawn(launcher);
    let table = b"a,b\n1,x\n2,y\n3,\n".as_slice();
    let job = client
        .send(&ToCell::Inspect(wire::Inspect { source_bytes: table.len() as u64, format: None, rows_max: 10, columns_max: 10 }), None)
        .unwrap();
    loop {
        match client.receive().expect("the cell lives").1 {
            FromCell::Read { offset, bytes } => client.block(job, &table[offset as usize..(offset + u64::from(bytes)) as usize]),
            FromCell::Inspected(inspection) => {
                assert_eq!(inspection.rows, 3);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A damaged model gives a failure, a model that still works, or a dead cell; it never hangs, and the next cell is as good as new.
#[test]
fn damaged_models_harm_nobody_else() {
    let Some(launcher) = launcher() else { return };
    let started = Instant::now();
    let (mut failed, mut worked, mut died) = (0, 0, 0);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let models: Vec<_> = ["logistic", "network", "boosting", "branch", "two", "zipmap", "types", "reshape"]
        .iter()
        .map(|m| fixture(&format!("{m}.onnx")))
        .collect();
    let (mut cell, mut client) = spawn(&launcher);
    for round in 0..1000 {
        let mut model = models[round % models.len()].clone();
        for _ in 0..=random(3) {
            let at = random(model.len());
            model[at] ^= 1 << random(8);
        }
        let file = SealedFile::create(&model).unwrap();
        match client.ask(&ToCell::Admit(client::load(&model)), Some(&file)) {
            Some(FromCell::Fail(fail)) => {
                assert!(matches!(fail.code, FailCode::ModelRefused | FailCode::TooLarge), "round {round}: {fail:?}");
                failed += 1;
            }
            Some(FromCell::Model(_)) => worked += 1,
            Some(other) => panic!("{other:?}"),
            None => {
                died += 1;
                println!("round {round}: {:?}", exit(&mut cell));
                (cell, client) = spawn(&launcher);
            }
        }
    }
    println!("1000 damaged models in {:?}: {failed} refused, {worked} still work, {died} killed their cell", started.elapsed());
    assert!(failed > 100, "the damage reaches the parser");
    client.load(0, &models[0]).unwrap();
}

#[test]
fn the_zygote_refuses_to_start_in_the_wrong_surroundings() {
    let start = |environment: &[(String, String)]| Launcher::start(PROGRAM.as_ref(), &["zygote"], environment, Floor::Development).is_err();
    let Some(library) = library() else { return };
    let good = environment(&library);
    assert!(!start(&good));
    assert!(start(&good[..1]), "telemetry is not switched off");
    assert!(start(&[vec![("ORT_LOAD_CONFIG_FROM_MODEL".into(), "1".into())], good.clone()].concat()), "models would bring configuration");
    assert!(start(&environment("/nowhere/libonnxruntime.so")), "no library");
}

/// Said to a person, not to a launcher.
#[test]
fn what_is_missing_is_said_clearly() {
    let run = |args: &[&str], environment: &[(&str, &str)]| {
        let output = std::process::Command::new(PROGRAM).args(args).env_clear().envs(environment.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["--version"], &[]), (true, format!("insula-cell {}\n", env!("CARGO_PKG_VERSION"))));
    let telemetry = ("ORT_DISABLE_TELEMETRY", "1");
    for (args, environment, words) in [
        (&[][..], &[][..], "usage: insula-cell zygote"),
        (&["zygote"], &[], "`ORT_DISABLE_TELEMETRY` must be set to `1`"),
        (&["zygote"], &[telemetry], "help: run `cargo xtask demo`"),
        (&["zygote"], &[telemetry, ("ORT_DYLIB_PATH", "/nowhere.so"), ("ORT_LOAD_CONFIG_FROM_MODEL", "1")], "must not be set"),
        (&["zygote"], &[telemetry, ("ORT_DYLIB_PATH", "/nowhere.so")], "started by the service, not by hand"),
    ] {
        let (success, text) = run(args, environment);
        assert!(!success && text.contains(words), "{args:?} {environment:?}: {text}");
    }
}

/// From a request for a cell to its first prediction.
///
///     ORT_DYLIB_PATH=… cargo test -p insula-cell --test cell -- --ignored --nocapture cold_start
///
/// `COLD_MODEL` (a file) and `COLD_REQUEST` (JSON) put another model in its place.
#[test]
#[ignore = "a measurement"]
fn cold_start() {
    let Some(launcher) = launcher() else { return };
    measure(&launcher, 50);
    let Some(launcher) = gvisor() else { return };
    measure(&launcher, 20);
}

fn measure(launcher: &Launcher, times: usize) {
    let expected: serde_json::Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let (mut request, mut model) = (expected["cases"][0]["request"].to_string(), fixture("logistic.onnx"));
    if let (Ok(file), Ok(text)) = (std::env::var("COLD_MODEL"), std::env::var("COLD_REQUEST")) {
        (request, model) = (text, std::fs::read(file).unwrap());
    }
    let mut used = jail::zygote::Usage::default();
    for pooled in [false, true] {
        let mut micros: Vec<u128> = (0..times)
            .map(|_| {
                let mut started = Instant::now();
                let (cell, mut client) = spawn(launcher);
                if pooled {
                    assert_eq!(client.ask(&ToCell::Ping, None), Some(FromCell::Ready));
                    started = Instant::now();
                }
                client.load(0, &model).unwrap();
                client.infer(0, &request).unwrap();
                let taken = started.elapsed().as_micros();
                used = cell.usage();
                taken
            })
            .collect();
        micros.sort_unstable();
        let from = if pooled { "from a warm cell" } else { "from the zygote" };
        println!("{from}: p50 {} us, p90 {} us; {used:?}", micros[times / 2], micros[times * 9 / 10]);
    }
}
