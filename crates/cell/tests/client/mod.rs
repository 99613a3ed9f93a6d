//! The service's side of the socket, for tests: blocking, one request at a time or pipelined.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test's own helper")]
#![allow(missing_docs, unreachable_pub, dead_code, reason = "shared by two test programs")]

use std::os::fd::{AsFd, OwnedFd};

use jail::memory::SealedFile;
use wire::{Batching, Decoder, Fail, FromCell, Load, ModelInfo, ToCell};

pub struct Client {
    socket: OwnedFd,
    decoder: Decoder,
    buffer: Vec<u8>,
    id: u64,
    in_pieces: bool,
}

impl Client {
    /// Over a connected stream socket; made blocking.
    pub fn new(socket: OwnedFd) -> Self {
        rustix::io::ioctl_fionbio(&socket, false).unwrap();
        Self { socket, decoder: Decoder::new(), buffer: vec![0; 256 << 10], id: 0, in_pieces: false }
    }

    /// For a cell to which no descriptor can be sent.
    pub fn in_pieces(socket: OwnedFd) -> Self {
        Self { in_pieces: true, ..Self::new(socket) }
    }

    /// A model on its way: as the file that is to be attached, or sent before in pieces.
    fn attach(&mut self, model: &[u8]) -> Option<SealedFile> {
        if !self.in_pieces {
            return Some(SealedFile::create(model).unwrap());
        }
        for piece in model.chunks(1000) {
            self.send(&ToCell::Piece(bytes::Bytes::copy_from_slice(piece)), None).unwrap();
        }
        None
    }

    /// Sends and returns the request's id; `None` when the cell is gone.
    pub fn send(&mut self, message: &ToCell, file: Option<&SealedFile>) -> Option<u64> {
        self.id += 1;
        let bytes = message.frame(self.id).unwrap().encode();
        jail::stream::send(self.socket.as_fd(), &bytes, file.map(AsFd::as_fd)).ok()?;
        Some(self.id)
    }

    /// Sends all of these at once, so that they wait together; returns their ids.
    pub fn send_together(&mut self, messages: &[ToCell]) -> Vec<u64> {
        let ids: Vec<u64> = (self.id + 1..).take(messages.len()).collect();
        self.id += messages.len() as u64;
        let frames = messages.iter().zip(&ids).map(|(message, id)| message.frame(*id).unwrap().encode());
        jail::stream::send(self.socket.as_fd(), &frames.collect::<Vec<_>>().concat(), None).unwrap();
        ids
    }

    /// Answers a read of job `id`.
    pub fn block(&mut self, id: u64, bytes: &[u8]) {
        let bytes = ToCell::Block(bytes::Bytes::copy_from_slice(bytes)).frame(id).unwrap().encode();
        jail::stream::send(self.socket.as_fd(), &bytes, None).unwrap();
    }

    /// The next frame; `None` when the cell is gone.
    pub fn receive(&mut self) -> Option<(u64, FromCell)> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some((frame.id, FromCell::parse(&frame).unwrap()));
            }
            match jail::stream::recv(self.socket.as_fd(), &mut self.buffer) {
                Ok((0, _)) | Err(_) => return None,
                Ok((bytes, _)) => self.decoder.feed(&self.buffer[..bytes]),
            }
        }
    }

    /// Sends and waits for the answer; `None` when the cell died.
    pub fn ask(&mut self, message: &ToCell, file: Option<&SealedFile>) -> Option<FromCell> {
        let id = self.send(message, file)?;
        let (answered, answer) = self.receive()?;
        assert_eq!(answered, id);
        Some(answer)
    }

    pub fn load(&mut self, slot: u32, model: &[u8]) -> Result<ModelInfo, Fail> {
        self.load_as(slot, model, load(model))
    }

    /// Loads a model whose requests are joined.
    pub fn load_joined(&mut self, slot: u32, model: &[u8], batching: Batching) -> Result<ModelInfo, Fail> {
        self.load_as(slot, model, Load { batching: Some(batching), ..load(model) })
    }

    fn load_as(&mut self, slot: u32, model: &[u8], load: Load) -> Result<ModelInfo, Fail> {
        let (message, file) = (ToCell::Load { slot, load }, self.attach(model));
        result(self.ask(&message, file.as_ref()).expect("the cell lives"))
    }

    pub fn admit(&mut self, model: &[u8], nodes_max: u32) -> Result<ModelInfo, Fail> {
        let (message, file) = (ToCell::Admit(Load { nodes_max, ..load(model) }), self.attach(model));
        result(self.ask(&message, file.as_ref()).expect("the cell lives"))
    }

    pub fn infer(&mut self, slot: u32, body: &str) -> Result<serde_json::Value, Fail> {
        let body = bytes::Bytes::copy_from_slice(body.as_bytes());
        self.inferred(&ToCell::Infer { slot, body })
    }

    /// One prediction in MLflow's scoring protocol, as JSON.
    #[allow(dead_code, reason = "not every test asks so")]
    pub fn score(&mut self, slot: u32, body: &str) -> Result<serde_json::Value, Fail> {
        let body = bytes::Bytes::copy_from_slice(body.as_bytes());
        self.inferred(&ToCell::Score { slot, body })
    }

    fn inferred(&mut self, request: &ToCell) -> Result<serde_json::Value, Fail> {
        match self.ask(request, None).expect("the cell lives") {
            FromCell::Inferred(answer) => Ok(serde_json::from_slice(&answer.body).expect("an answer is JSON")),
            FromCell::Fail(fail) => Err(fail),
            other => panic!("{other:?}"),
        }
    }
}

pub fn load(model: &[u8]) -> Load {
    Load { name: "iris".into(), version: "3".into(), bytes: model.len() as u64, nodes_max: 1000, batching: None }
}

fn result(answer: FromCell) -> Result<ModelInfo, Fail> {
    match answer {
        FromCell::Model(info) => Ok(info),
        FromCell::Fail(fail) => Err(fail),
        other => panic!("{other:?}"),
    }
}

pub fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compares an answer with what onnxruntime in Python gave: floats by their bits.
pub fn assert_bits(case: &serde_json::Value, answer: &serde_json::Value) {
    let model = &case["model"];
    let (expected, got) = (case["outputs"].as_array().unwrap(), answer["outputs"].as_array().unwrap());
    assert_eq!(expected.len(), got.len(), "{model}");
    for (expected, got) in expected.iter().zip(got) {
        for field in ["name", "datatype", "shape"] {
            assert_eq!(expected[field], got[field], "{model}");
        }
        let data = got["data"].as_array().unwrap();
        let bits: Vec<serde_json::Value> = match expected["datatype"].as_str().unwrap() {
            // From the text, because a parser that goes through f64 could hide a digit.
            "FP32" => data.iter().map(|v| v.to_string().parse::<f32>().unwrap().to_bits().into()).collect(),
            "FP64" => data.iter().map(|v| v.to_string().parse::<f64>().unwrap().to_bits().into()).collect(),
            "FP16" => data.iter().map(|v| half::f16::from_f32(v.to_string().parse().unwrap()).to_bits().into()).collect(),
            _ => data.clone(),
        };
        assert_eq!(expected["bits"].as_array().unwrap(), &bits, "{model} {}", expected["name"]);
    }
}
