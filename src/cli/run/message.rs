//! What `snapback run` says to a keeper, line by line on its standard input. If the input ends
//! without [`Message::Keep`], `snapback run` has died: the command is to be killed, and the
//! changes are dropped.

use std::fmt;

/// What has to be killed if `snapback run` dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// All processes of a group.
    Group(i32),
    /// One process, in a group that it shares with others.
    Process(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Started(Target),
    /// Everything is to be made durable, and the COW stays.
    Keep,
    /// The files are to be removed.
    Drop,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(Target::Group(id)) => write!(f, "group {id}"),
            Self::Started(Target::Process(id)) => write!(f, "process {id}"),
            Self::Keep => write!(f, "keep"),
            Self::Drop => write!(f, "drop"),
        }
    }
}

impl Message {
    /// `None` for a line that is none.
    pub fn read(line: &str) -> Option<Self> {
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        let id = number.parse().ok().filter(|id| *id > 1);
        match word {
            "group" => id.map(|id| Self::Started(Target::Group(id))),
            "process" => id.map(|id| Self::Started(Target::Process(id))),
            "keep" => Some(Self::Keep),
            "drop" => Some(Self::Drop),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        for message in [
            Message::Started(Target::Group(42)),
            Message::Started(Target::Process(2)),
            Message::Keep,
            Message::Drop,
        ] {
            assert_eq!(Message::read(&message.to_string()), Some(message));
        }
        // 0 and 1 would mean this process's own group, and everything.
        for bad in ["group 1", "group 0", "process -4", "group", "kee", ""] {
            assert_eq!(Message::read(bad), None, "{bad}");
        }
    }
}
