//! Wrong command lines, said in one line as every other error is.

use clap::error::ErrorKind;
use clap::Parser;

use super::Cli;

/// The command line; where it makes no sense the process ends with status 2, and with 0 after a text that was asked for.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|e| {
        // A text of many lines that was asked for, or that stands in for a command.
        if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            e.exit();
        }
        eprintln!("stillframe: {}", in_one_line(&e.render().to_string()));
        std::process::exit(e.exit_code());
    })
}

/// What is wrong, and how it is meant.
fn in_one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let wrong: Vec<&str> = lines.iter().take_while(|line| !line.is_empty()).map(|line| line.strip_prefix("error: ").unwrap_or(line)).collect();
    let tip = lines.iter().find_map(|line| line.strip_prefix("tip: "));
    let usage = lines.iter().find_map(|line| line.strip_prefix("Usage: "));
    let advice = tip.into_iter().map(str::to_owned).chain([usage.map_or("see --help".to_owned(), |usage| format!("usage: {usage}"))]);
    std::iter::once(wrong.join(" ")).chain(advice).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(args: &[&str]) -> String {
        in_one_line(&Cli::try_parse_from([&["stillframe"], args].concat()).unwrap_err().render().to_string())
    }

    #[test]
    fn it_says_what_is_wrong_and_what_is_right() {
        assert_eq!(said(&["rm"]), "the following required arguments were not provided: <FRAME>...; usage: stillframe rm <FRAME>...");
        assert_eq!(said(&["checkpoint", "abc"]), "invalid value 'abc' for '[PID]': 'abc' is no process id; write a number above 0, as ps shows it; see --help");
        let typo = said(&["chekpoint", "1"]);
        assert!(typo.starts_with("unrecognized subcommand 'chekpoint'; some similar subcommands exist: ") && typo.ends_with("; usage: stillframe <COMMAND>"), "{typo}");
        let method = said(&["checkpoint", "1", "--method", "foo"]);
        assert!(method.starts_with("invalid value 'foo' for '--method <METHOD>' [possible values: auto, track, fork]; "), "{method}");
    }
}
