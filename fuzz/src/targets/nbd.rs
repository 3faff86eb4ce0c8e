//! What an NBD server says to a reader.

use std::time::Duration;

use katamaran::nbd::{NbdError, Reader};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{Target, block_on};

pub(super) const TARGET: Target = Target {
    name: "nbd",
    run,
    // A reply to an option may announce 64 KiB; nothing is set aside for it before it has come.
    base: 128 << 10,
    per_byte: 8,
};

const MOST: usize = 64 << 10;

fn run(bytes: &[u8]) {
    let stream = &bytes[..bytes.len().min(MOST)];
    block_on(async {
        let begun = Instant::now();
        let (near, mut far) = UnixStream::pair().expect("sockets");
        far.write_all(stream).await.expect("it fits");
        far.shutdown().await.expect("it is open");
        if let Ok(mut reader) = Reader::over(near, "drive").await {
            read(&mut reader, stream)
                .await
                .expect_err("it comes to an end");
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "the end was overheard");
    });
}

/// Reads until it fails; what is read is what was sent.
async fn read(reader: &mut Reader, stream: &[u8]) -> Result<(), NbdError> {
    loop {
        let mut block = [0; 32];
        reader.read(0, &mut block).await?;
        assert!(stream.windows(block.len()).any(|sent| sent == block));
    }
}
