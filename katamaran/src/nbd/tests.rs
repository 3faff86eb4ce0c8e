//! The reader against a server that plays a script. That a real QEMU answers like this is for the tests of
//! `--verify-storage`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::wire::{
    OPTION_GO, OPTION_MAGIC, OPTION_REPLY_MAGIC, REPLY_ACK, REPLY_ERROR, REPLY_INFO, REPLY_MAGIC,
    REQUEST_MAGIC, SERVER_MAGIC,
};
use super::{NbdError, Reader};

struct Server {
    io: UnixStream,
}

impl Server {
    fn pair() -> (Self, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Self { io: far }, near)
    }

    async fn greet(&mut self, flags: u16) {
        self.io.write_u64(SERVER_MAGIC).await.unwrap();
        self.io.write_u64(OPTION_MAGIC).await.unwrap();
        self.io.write_u16(flags).await.unwrap();
    }

    /// The export that the client asks for.
    async fn asked(&mut self) -> String {
        assert_eq!(self.io.read_u32().await.unwrap(), 3);
        assert_eq!(self.io.read_u64().await.unwrap(), OPTION_MAGIC);
        assert_eq!(self.io.read_u32().await.unwrap(), OPTION_GO);
        let length = self.io.read_u32().await.unwrap();
        let name_length = self.io.read_u32().await.unwrap();
        assert_eq!(length, name_length + 8);
        let mut name = vec![0; usize::try_from(name_length).unwrap()];
        self.io.read_exact(&mut name).await.unwrap();
        assert_eq!(self.io.read_u16().await.unwrap(), 1);
        assert_eq!(self.io.read_u16().await.unwrap(), 3);
        String::from_utf8(name).unwrap()
    }

    async fn option_reply(&mut self, kind: u32, data: &[u8]) {
        self.io.write_u64(OPTION_REPLY_MAGIC).await.unwrap();
        self.io.write_u32(OPTION_GO).await.unwrap();
        self.io.write_u32(kind).await.unwrap();
        let length = u32::try_from(data.len()).unwrap();
        self.io.write_u32(length).await.unwrap();
        self.io.write_all(data).await.unwrap();
    }

    async fn export(&mut self, size: u64) {
        let block_size = [&[0, 3][..], &[0; 12]].concat();
        self.option_reply(REPLY_INFO, &block_size).await;
        let export = [&[0, 0][..], &size.to_be_bytes(), &[0, 1]].concat();
        self.option_reply(REPLY_INFO, &export).await;
        self.option_reply(REPLY_ACK, &[]).await;
    }

    /// (command, cookie, offset, length) of a request.
    async fn request(&mut self) -> (u16, u64, u64, u32) {
        assert_eq!(self.io.read_u32().await.unwrap(), REQUEST_MAGIC);
        assert_eq!(self.io.read_u16().await.unwrap(), 0);
        (
            self.io.read_u16().await.unwrap(),
            self.io.read_u64().await.unwrap(),
            self.io.read_u64().await.unwrap(),
            self.io.read_u32().await.unwrap(),
        )
    }

    async fn reply(&mut self, code: u32, cookie: u64, data: &[u8]) {
        self.io.write_u32(REPLY_MAGIC).await.unwrap();
        self.io.write_u32(code).await.unwrap();
        self.io.write_u64(cookie).await.unwrap();
        self.io.write_all(data).await.unwrap();
    }
}

#[tokio::test]
async fn a_drive_is_opened_by_name_read_and_closed() {
    let (mut server, near) = Server::pair();
    let serve = async {
        server.greet(3).await;
        assert_eq!(server.asked().await, "disk0");
        server.export(4096).await;
        let (command, cookie, offset, length) = server.request().await;
        assert_eq!((command, offset, length), (0, 1024, 3));
        server.reply(0, cookie, b"abc").await;
        let (_, cookie, ..) = server.request().await;
        server.reply(5, cookie, b"").await;
        let (command, ..) = server.request().await;
        assert_eq!(command, 2);
        assert_eq!(server.io.read(&mut [0]).await.unwrap(), 0);
    };
    let read = async {
        let mut reader = Reader::over(near, "disk0").await.unwrap();
        assert_eq!(reader.size(), 4096);
        let mut bytes = [0; 3];
        reader.read(1024, &mut bytes).await.unwrap();
        assert_eq!(&bytes, b"abc");
        let error = reader.read(0, &mut bytes).await.unwrap_err();
        assert!(matches!(error, NbdError::Read { code: 5, .. }), "{error}");
        reader.close().await.unwrap();
    };
    tokio::join!(serve, read);
}

#[tokio::test]
async fn an_export_that_is_not_there_is_named_with_the_servers_words() {
    let (mut server, near) = Server::pair();
    let serve = async {
        server.greet(3).await;
        server.asked().await;
        server
            .option_reply(REPLY_ERROR | 6, b"export 'x' not present")
            .await;
    };
    let ((), opened) = tokio::join!(serve, Reader::over(near, "x"));
    let text = opened.unwrap_err().to_string();
    assert!(
        text.contains("export x") && text.contains("not present"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_no_nbd_server_is_told_apart() {
    let (mut server, near) = Server::pair();
    let serve = async { server.io.write_all(b"HTTP/1.1 400").await.unwrap() };
    let ((), opened) = tokio::join!(serve, Reader::over(near, "x"));
    assert!(matches!(opened, Err(NbdError::NotNbd { .. })));

    let (mut server, near) = Server::pair();
    let ((), opened) = tokio::join!(server.greet(0), Reader::over(near, "x"));
    assert!(matches!(opened, Err(NbdError::NotNbd { .. })));
}

#[tokio::test]
async fn a_reply_to_another_request_ends_it() {
    let (mut server, near) = Server::pair();
    let serve = async {
        server.greet(3).await;
        server.asked().await;
        server.export(512).await;
        let (_, cookie, ..) = server.request().await;
        server.reply(0, cookie + 1, &[0; 8]).await;
    };
    let read = async {
        let mut reader = Reader::over(near, "disk0").await.unwrap();
        reader.read(0, &mut [0; 8]).await.unwrap_err()
    };
    let ((), error) = tokio::join!(serve, read);
    assert!(matches!(error, NbdError::OutOfStep), "{error}");
}
