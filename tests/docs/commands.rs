//! Commands.

use katamaran::cli;
use katamaran::config::Config;

use crate::markdown::documents;

/// The katamaran commands in a shell block, with continued lines joined, without the shell's comments.
fn commands(text: &str) -> Vec<Vec<String>> {
    text.replace("\\\n", " ")
        .lines()
        .filter_map(|line| {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| *word != "katamaran")
                .take_while(|word| *word != "#")
                .peekable();
            words.peek()?;
            Some(words.map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn every_command_that_is_shown_is_taken() {
    let mut taken = 0;
    for document in documents() {
        for block in document.blocks(&["sh"]) {
            for words in commands(&block.text) {
                let parsed = cli::parse(words.iter().map(Into::into))
                    .unwrap_or_else(|error| panic!("{}: {error}", block.at));
                if parsed.command.is_none() {
                    Config::from_args(&parsed.migrate)
                        .unwrap_or_else(|error| panic!("{}: {words:?}: {error}", block.at));
                }
                taken += 1;
            }
        }
    }
    assert!(taken >= 4, "only {taken} commands found");
}
