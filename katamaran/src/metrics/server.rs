//! `GET /metrics`, for as long as katamaran runs. One request per connection, few connections at a
//! time, each under a deadline: a scraper that hangs must not cost the migration anything.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::encode::CONTENT_TYPE;
use super::recorder::Metrics;
use crate::deadline;

/// Served at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8;
/// Of a request's head: Prometheus sends some hundred bytes.
const MAX_REQUEST: usize = 16 << 10;

/// Answers until `stop`.
pub(super) async fn serve(listener: TcpListener, metrics: Metrics, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &free) => accepted,
        };
        // Those that have ended make room.
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, place)) => {
                let metrics = metrics.clone();
                connections.spawn(async move {
                    let _place = place;
                    answer_one(stream, metrics).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a scraper could not be accepted");
                tokio::time::sleep(deadline::ACCEPT_RETRY).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(free)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn answer_one(stream: TcpStream, metrics: Metrics) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(deadline::METRICS_REQUEST)
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(deadline::METRICS_REQUEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scrape failed"),
        Err(_) => tracing::debug!("a scraper was too slow"),
    }
}

fn respond(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from(metrics.text())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE_HEADER, HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::role::Role;

    struct Server {
        address: SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn server() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Metrics::new(Role::Source), stop.clone()));
        Server {
            address,
            stop,
            task,
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_served_at_their_path_and_nowhere_else() {
        let server = server().await;
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = ask(server.address, &get("/metrics")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("\nkatamaran_migration_active_migrations{role=\"source\"} 0\n"),
            "{answer}"
        );
        for path in ["/", "/metrics/", "/metricsx", "/../metrics"] {
            let answer = ask(server.address, &get(path)).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        let answer = ask(server.address, post).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        server.stop.cancel();
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn garbage_and_endless_requests_are_cut_off() {
        let server = server().await;
        let answer = ask(server.address, "what is this?\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let endless = format!(
            "GET /metrics HTTP/1.1\r\nX: {}",
            "x".repeat(2 * MAX_REQUEST)
        );
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // It may be refused before all of it is sent.
        drop(stream.write_all(endless.as_bytes()).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
        server.stop.cancel();
        server.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silent_scrapers_are_dropped_and_make_room_for_others() {
        let server = server().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let answer = ask(server.address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = tokio::time::timeout(deadline::METRICS_REQUEST * 3, answer)
            .await
            .expect("the silent ones are dropped in time");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        server.stop.cancel();
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_scrape_in_progress_does_not_hold_up_the_end() {
        let server = server().await;
        let _silent = TcpStream::connect(server.address).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.stop.cancel();
        tokio::time::timeout(Duration::from_secs(1), server.task)
            .await
            .expect("ends at once")
            .unwrap();
    }
}
