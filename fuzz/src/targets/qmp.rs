//! A whole monitor: what it says from its greeting on, read by the client, while a command is under way.

use std::time::Duration;

use katamaran::qmp::command::{
    Cont, QueryBlock, QueryBlockExports, QueryBlockJobs, QueryCommands, QueryCpusFast,
    QueryMachines, QueryMemorySizeSummary, QueryMigrate, QueryMigrateCapabilities,
    QueryMigrateParameters, QueryNamedBlockNodes, QueryRxFilter, QueryStatus, QueryVersion,
};
use katamaran::qmp::{Command, Qmp, QmpError};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{Target, block_on};

pub(super) const TARGET: Target = Target {
    name: "qmp",
    run,
    base: 512 << 10,
    // An object with one member takes 7 bytes of JSON and a B-tree's node; an event is kept twice.
    per_byte: 256,
};

/// What fits a socket's buffer, so that one write does.
const MOST: usize = 64 << 10;

fn run(bytes: &[u8]) {
    let Some((choice, stream)) = bytes.split_first() else {
        return;
    };
    let stream = &stream[..stream.len().min(MOST)];
    block_on(async {
        let begun = Instant::now();
        let (near, mut far) = UnixStream::pair().expect("sockets");
        far.write_all(stream).await.expect("it fits");
        far.shutdown().await.expect("it is open");
        if let Ok(qmp) = Qmp::over(near).await {
            let mut events = qmp.subscribe();
            let error = ask(&qmp, *choice).await.err();
            assert!(error.is_none_or(|error| !matches!(error, QmpError::Deadline { .. })));
            while let Ok(event) = events.recv().await {
                let _status = (event.migration_status(), event.job_status());
                let _job = event.block_job();
            }
            assert!(qmp.is_closed());
        }
        // The clock stands still unless somebody waits for it.
        assert_eq!(begun.elapsed(), Duration::ZERO, "the end was overheard");
    });
}

async fn ask(qmp: &Qmp, choice: u8) -> Result<(), QmpError> {
    match choice % 16 {
        0 => blocks(qmp).await,
        1 => done(qmp, QueryBlockExports).await,
        2 => done(qmp, QueryBlockJobs).await,
        3 => done(qmp, QueryCommands).await,
        4 => done(qmp, QueryCpusFast).await,
        5 => done(qmp, QueryMachines).await,
        6 => done(qmp, QueryMemorySizeSummary).await,
        7 => done(qmp, QueryMigrate).await,
        8 => done(qmp, QueryMigrateCapabilities).await,
        9 => done(qmp, QueryMigrateParameters).await,
        10 => done(qmp, QueryNamedBlockNodes { flat: true }).await,
        11 => done(qmp, QueryRxFilter::default()).await,
        12 => done(qmp, QueryStatus).await,
        13 => done(qmp, QueryVersion).await,
        14 => done(qmp, Cont).await,
        _ => qmp.machine_type().await.map(drop),
    }
}

async fn done(qmp: &Qmp, command: impl Command) -> Result<(), QmpError> {
    qmp.execute(command).await.map(drop)
}

async fn blocks(qmp: &Qmp) -> Result<(), QmpError> {
    for block in qmp.execute(QueryBlock).await? {
        let _size = block.virtual_size();
    }
    Ok(())
}
