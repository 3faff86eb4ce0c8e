//! The command: parse, run, print the result, exit with a status that a script can use.

mod commands;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use katamaran::cli::{self, Cli, Command, LogFormat, MigrateArgs, PreflightArgs, TraceArgs};
use katamaran::config::{Config, PreflightConfig, TraceConfig};
use katamaran::metrics::{Exporter, MetricsError};
use katamaran::migrate::progress::{self, Outlets};
use katamaran::migrate::{
    aftermath, chain, destination, measured, report::Report, source, summary,
};
use katamaran::role::Role;
use katamaran::{shutdown, stderr, telemetry, trace};

/// Bad usage, or refused before anything was touched.
const USAGE: u8 = 2;
/// For the last lines of the log: the terminal may be stopped.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let status = run(cli);
    stderr::flush(LAST_LINES);
    status
}

fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Some(Command::Report { file }) => match Report::read(&file) {
            Ok(report) => print(&summary::render(&report)),
            Err(error) => fail(USAGE, format_args!("read {}: {error}", file.display())),
        },
        Some(Command::Preflight(args)) => preflight(&args),
        Some(Command::Trace(args)) => trace(&args),
        Some(Command::Status { json }) => commands::status(json),
        Some(Command::Cleanup(args)) => commands::cleanup(&args),
        Some(Command::Resolve(args)) => commands::resolve(args),
        None => migrate(&cli.migrate),
    }
}

fn trace(args: &TraceArgs) -> ExitCode {
    let config = match TraceConfig::from_args(args) {
        Ok(config) => config,
        Err(error) => {
            return fail(
                USAGE,
                format_args!("{error}\n\nTry 'katamaran trace --help'"),
            );
        }
    };
    if let Err(error) = telemetry::init(LogFormat::Text, &args.log_level, progress::bars()) {
        return fail(USAGE, format_args!("{error}"));
    }
    // One thread: what takes time is the kernel's and the terminal's.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, format_args!("start the runtime: {error}")),
    };
    runtime.block_on(async {
        let stop = match shutdown::asked_to_end() {
            Ok(stop) => stop,
            Err(error) => return fail(1, format_args!("install signal handlers: {error}")),
        };
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        match trace::run(&config, &mut out, stop).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.nothing_was_touched() => {
                fail(USAGE, format_args!("{}", chain(&error)))
            }
            Err(error) => fail(1, format_args!("{}", chain(&error))),
        }
    })
}

fn migrate(args: &MigrateArgs) -> ExitCode {
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => return fail(USAGE, format_args!("{error}\n\nTry 'katamaran --help'")),
    };
    let bars = progress::bars();
    if let Err(error) = telemetry::init(args.log_format, &args.log_level, bars.clone()) {
        return fail(USAGE, format_args!("{error}"));
    }
    if let Some(path) = &args.report
        && let Err(error) = Report::check_place(path)
    {
        return fail(
            USAGE,
            format_args!("--report {} can't be written: {error}", path.display()),
        );
    }
    let exporter = match exporter(&config) {
        Ok(exporter) => exporter,
        Err(error) => return fail(USAGE, format_args!("{}", chain(&error))),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, format_args!("start the runtime: {error}")),
    };
    let run = runtime.block_on(async {
        let stop = shutdown::on_signals(aftermath::last_words)?;
        let metrics = exporter.metrics();
        let outlets = Outlets { bars, metrics };
        let exporting = exporter.start();
        let report = match config {
            Config::Source(config) => source::run(*config, outlets, stop).await,
            Config::Destination(config) => destination::run(*config, outlets, stop).await,
        };
        Ok::<_, std::io::Error>((report, exporting))
    });
    let (report, exporting) = match run {
        Ok(run) => run,
        Err(error) => return fail(1, format_args!("install signal handlers: {error}")),
    };
    // First, for nobody may read standard output.
    if let Some(path) = &args.report
        && let Err(error) = report.write(path)
    {
        fail(
            1,
            format_args!("write the report {}: {error}", path.display()),
        );
    }
    print(&summary::render(&report));
    // Last, for it may take a while: the result is told by now.
    if let Err(error) = runtime.block_on(exporting.finish(&measured(&report))) {
        fail(1, format_args!("count this migration: {}", chain(&error)));
    }
    ExitCode::from(report.exit_code(args.require_zero_drop))
}

/// Looks, prints what was found.
fn preflight(args: &PreflightArgs) -> ExitCode {
    let config = match PreflightConfig::from_args(&args.migrate) {
        Ok(config) => config,
        Err(error) => {
            let hint = "Try 'katamaran preflight --help'";
            return fail(USAGE, format_args!("{error}\n\n{hint}"));
        }
    };
    let (format, level) = (args.migrate.log_format, &args.migrate.log_level);
    if let Err(error) = telemetry::init(format, level, progress::bars()) {
        return fail(USAGE, format_args!("{error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, format_args!("start the runtime: {error}")),
    };
    let found = runtime.block_on(katamaran::preflight::run(&config));
    print(&match args.json {
        true => found.json(),
        false => found.render(),
    });
    if found.is_fit(args.strict) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(USAGE)
    }
}

fn exporter(config: &Config) -> Result<Exporter, MetricsError> {
    let role = match config {
        Config::Source(_) => Role::Source,
        Config::Destination(_) => Role::Destination,
    };
    let to = &config.common().metrics;
    Exporter::open(role, to.listen, to.file.as_deref())
}

#[expect(
    clippy::let_underscore_must_use,
    reason = "nobody is left to tell that standard output is gone"
)]
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn fail(status: u8, message: std::fmt::Arguments<'_>) -> ExitCode {
    stderr::write(format!("error: {message}\n").as_bytes());
    ExitCode::from(status)
}
