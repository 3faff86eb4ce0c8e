//! A whole control session, of either role: each line of the input is the body of a frame.

use std::fmt::Debug;
use std::time::Duration;

use katamaran::control::{Client, ControlError, Server, Timing};
use katamaran::migrate::message::{MigrationProtocol, Reply};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use super::{Target, block_on};

pub(super) const TARGET: Target = Target {
    name: "session",
    run,
    base: 512 << 10,
    // Of JSON, see `qmp`; the request that it becomes is built beside it.
    per_byte: 256,
};

/// What is waiting for the peer, which reads nothing.
const PIPE: usize = 64 << 10;

fn run(bytes: &[u8]) {
    let Some((role, script)) = bytes.split_first() else {
        return;
    };
    block_on(async {
        let begun = Instant::now();
        let (near, far) = tokio::io::duplex(PIPE);
        let peer = play(far, script);
        let ending = match role & 1 {
            0 => tokio::join!(destination(near), peer).0,
            _ => tokio::join!(source(near), peer).0,
        };
        assert!(!matches!(ending, ControlError::PeerSilent { .. }));
        assert_eq!(begun.elapsed(), Duration::ZERO, "the end was overheard");
    });
}

/// The peer says its script and goes.
async fn play(mut io: DuplexStream, script: &[u8]) {
    for body in script.split(|byte| *byte == b'\n') {
        let length = u32::try_from(body.len()).expect("inputs are short");
        // Who gives up early does not read on.
        if io.write_all(&length.to_be_bytes()).await.is_err() || io.write_all(body).await.is_err() {
            return;
        }
    }
}

async fn destination(io: DuplexStream) -> ControlError {
    let (server, mut requests) = Server::<MigrationProtocol>::start(io, Timing::default());
    loop {
        match requests.next().await {
            Ok((id, request)) => {
                survives(&request);
                // The session may be over by now.
                let _sent = server.reply(id, Ok(Reply::Exported));
            }
            Err(why) => return why,
        }
    }
}

async fn source(io: DuplexStream) -> ControlError {
    let (client, mut notices) = Client::<MigrationProtocol>::start(io, Timing::default());
    loop {
        match notices.next().await {
            Ok(notice) => survives(&notice),
            Err(why) => {
                let _clock = client.clock();
                return why;
            }
        }
    }
}

/// A message is the same after it was passed on.
fn survives<M: Serialize + DeserializeOwned + Debug + PartialEq>(message: &M) {
    let text = serde_json::to_string(message).expect("a message that came can go");
    let again: M = serde_json::from_str(&text).expect("what went can come");
    assert_eq!(&again, message);
}
