//! The commands that look after migrations whose katamaran is gone.

use std::future::Future;
use std::process::ExitCode;

use katamaran::cli::{CleanupArgs, LogFormat, ResolveArgs};
use katamaran::migrate::aftermath::{self, Answer, Wanted};
use katamaran::migrate::progress::bars;
use katamaran::migrate::{MigrateError, chain};
use katamaran::telemetry;

use crate::{USAGE, fail, print};

/// Where the VM is can't be told.
const UNDECIDED: u8 = 4;
/// Something is left behind.
const LEFT: u8 = 5;

pub(crate) fn status(as_json: bool) -> ExitCode {
    match aftermath::status() {
        Ok(status) => print(&match as_json {
            true => json(&status),
            false => status.render(),
        }),
        Err(error) => fail(USAGE, format_args!("{}", chain(&error))),
    }
}

pub(crate) fn cleanup(args: &CleanupArgs) -> ExitCode {
    let wanted = Wanted {
        apply: args.apply,
        session: args.session,
        forget: args.forget,
    };
    run(aftermath::cleanup(wanted), |found| {
        print(&match args.json {
            true => json(found),
            false => found.render(),
        });
        match found.is_left() {
            true => ExitCode::from(LEFT),
            false => ExitCode::SUCCESS,
        }
    })
}

pub(crate) fn resolve(args: ResolveArgs) -> ExitCode {
    let answer = match args {
        ResolveArgs { discard: true, .. } => Answer::Discard,
        ResolveArgs { run: true, .. } => Answer::Run,
        ResolveArgs {
            destination_discarded: Some(receipt),
            ..
        } => Answer::DestinationDiscarded(receipt),
        ResolveArgs {
            destination_runs: Some(receipt),
            ..
        } => Answer::DestinationRuns(receipt),
        _ => Answer::Nothing,
    };
    run(aftermath::resolve(args.session, answer), |resolved| {
        let cleaned = resolved.cleaned.as_ref();
        let removed = cleaned.map(|cleaned| cleaned.render(true));
        print(&format!(
            "{}{}\n",
            removed.unwrap_or_default(),
            resolved.text
        ));
        match (resolved.settled, cleaned.is_some_and(|c| c.is_left())) {
            (false, _) => ExitCode::from(UNDECIDED),
            (true, true) => ExitCode::from(LEFT),
            (true, false) => ExitCode::SUCCESS,
        }
    })
}

fn run<T>(
    work: impl Future<Output = Result<T, MigrateError>>,
    tell: impl FnOnce(&T) -> ExitCode,
) -> ExitCode {
    if let Err(error) = telemetry::init(LogFormat::Text, "warn", bars()) {
        return fail(USAGE, format_args!("{error}"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    match runtime.map(|runtime| runtime.block_on(work)) {
        Ok(Ok(done)) => tell(&done),
        Ok(Err(error)) => fail(USAGE, format_args!("{}", chain(&error))),
        Err(error) => fail(1, format_args!("start the runtime: {error}")),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(value);
    text.map_or_else(|error| format!("{error}\n"), |text| text + "\n")
}
