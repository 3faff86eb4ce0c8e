//! The other end of a monitor socket, for tests: it does what the test tells it, step by step.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Qmp, QmpError};

pub(super) struct Fake {
    stream: BufReader<UnixStream>,
}

pub(super) struct Received {
    pub(super) name: String,
    pub(super) arguments: Value,
    pub(super) id: u64,
}

impl Fake {
    pub(super) fn over(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// A fake and the client's end of the socket, nothing said yet.
    pub(super) fn silent() -> (Self, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Self::over(far), near)
    }

    /// A fake and a client that has negotiated with it.
    pub(super) async fn connected() -> (Self, Qmp) {
        let (mut fake, near) = Self::silent();
        let negotiate = async {
            fake.greet().await;
            let command = fake.receive().await;
            assert_eq!(command.name, "qmp_capabilities");
            fake.answer(&command, json!({})).await;
            fake
        };
        let (fake, qmp) = tokio::join!(negotiate, Qmp::over(near));
        (fake, qmp.unwrap())
    }

    pub(super) async fn greet(&mut self) {
        self.send(json!({"QMP": {
            "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"},
            "capabilities": ["oob"]
        }}))
        .await;
    }

    pub(super) async fn receive(&mut self) -> Received {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        Received {
            name: value["execute"].as_str().unwrap().to_owned(),
            arguments: value["arguments"].clone(),
            id: value["id"].as_u64().unwrap(),
        }
    }

    pub(super) async fn send(&mut self, value: Value) {
        self.send_raw(format!("{value}\r\n").as_bytes()).await;
    }

    pub(super) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Writes until the client gives up, at most `total` bytes; returns how many it took.
    pub(super) async fn flood(&mut self, total: usize) -> usize {
        let chunk = vec![b'x'; 1 << 20];
        let mut written = 0;
        while written < total && self.stream.write_all(&chunk).await.is_ok() {
            written += chunk.len();
        }
        written
    }

    /// Waits until the client has closed its end.
    pub(super) async fn expect_end(mut self) {
        let mut line = String::new();
        assert_eq!(self.stream.read_line(&mut line).await.unwrap(), 0, "{line}");
    }

    pub(super) async fn answer(&mut self, command: &Received, value: Value) {
        self.send(json!({"return": value, "id": command.id})).await;
    }

    pub(super) async fn refuse(&mut self, command: &Received, class: &str, desc: &str) {
        self.send(json!({"error": {"class": class, "desc": desc}, "id": command.id}))
            .await;
    }

    pub(super) async fn event(&mut self, name: &str, data: Value) {
        let timestamp = json!({"seconds": 1_700_000_000, "microseconds": 250_000});
        self.send(json!({"event": name, "data": data, "timestamp": timestamp}))
            .await;
    }
}

/// Serves one client that gets `opening` and then nothing; returns what connecting made of it.
pub(super) async fn connect_to_opening(opening: &[u8]) -> QmpError {
    let (mut fake, near) = Fake::silent();
    fake.send_raw(opening).await;
    Qmp::over(near).await.unwrap_err()
}
