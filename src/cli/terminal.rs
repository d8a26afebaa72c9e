//! What the output goes to: a terminal with its size and abilities, or something else.

use std::io::IsTerminal;

use ratatui::crossterm::terminal::size;

/// A terminal to print on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns, at least 20.
    pub width: usize,
    /// Lines, at least 4.
    pub height: usize,
    /// Colours may be used.
    pub colour: bool,
    /// It shows UTF-8.
    pub unicode: bool,
}

impl Terminal {
    /// The terminal that stdout goes to; `None` if it goes elsewhere.
    pub fn of_stdout() -> Option<Self> {
        if !std::io::stdout().is_terminal() || is_dumb() {
            return None;
        }
        let (width, height) = size().ok().filter(|(w, h)| *w > 0 && *h > 0)?;
        Some(Self {
            width: usize::from(width).max(20),
            height: usize::from(height).max(4),
            ..Self::with_abilities()
        })
    }

    /// 80 columns and 24 lines with the abilities that the environment tells of.
    pub fn with_abilities() -> Self {
        let text = |name: &str| std::env::var(name).ok();
        Self {
            width: 80,
            height: 24,
            colour: may_colour(text),
            unicode: is_utf8(text),
        }
    }
}

/// Whether stderr goes to a terminal that can redraw a line.
pub fn of_stderr() -> bool {
    std::io::stderr().is_terminal() && !is_dumb()
}

/// `TERM` says that the terminal can only append.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// `NO_COLOR` is not set, or is empty (<https://no-color.org>).
fn may_colour(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set decides. If none is, UTF-8 is what
/// terminals show nowadays.
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_signs_follow_the_environment() {
        let with = |pairs: &'static [(&str, &str)]| {
            move |name: &str| {
                let found = pairs.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            }
        };
        assert!(may_colour(with(&[])) && may_colour(with(&[("NO_COLOR", "")])));
        assert!(!may_colour(with(&[("NO_COLOR", "1")])));
        assert!(is_utf8(with(&[])));
        assert!(is_utf8(with(&[("LANG", "de_DE.UTF-8")])));
        assert!(!is_utf8(with(&[("LANG", "de_DE.UTF-8"), ("LC_ALL", "C")])));
        assert!(!is_utf8(with(&[("LC_CTYPE", "POSIX")])));
    }
}
