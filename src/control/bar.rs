//! Bars of characters.

/// `part` of `whole` as a bar of `width` characters. It is full only if `part` is all of it, and
/// empty only if `part` is nothing.
pub fn bar(part: u64, whole: u64, width: usize, unicode: bool) -> String {
    let (full, rest) = if unicode { ('█', '░') } else { ('#', '-') };
    let filled = match whole {
        0 => 0,
        _ => {
            let cells = u128::try_from(width).unwrap_or(0);
            let share = u128::from(part.min(whole)) * cells / u128::from(whole);
            usize::try_from(share).unwrap_or(width)
        }
    };
    let filled = filled.max(usize::from(part > 0 && whole > 0)).min(width);
    let cells = std::iter::repeat_n(full, filled);
    cells
        .chain(std::iter::repeat_n(rest, width - filled))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_or_empty_only_if_that_is_true() {
        for (part, whole, text) in [
            (0, 100, "-----"),
            (1, 1_000_000, "#----"),
            (50, 100, "##---"),
            (999_999, 1_000_000, "####-"),
            (100, 100, "#####"),
            (200, 100, "#####"),
            (0, 0, "-----"),
            (7, 0, "-----"),
            (u64::MAX, u64::MAX, "#####"),
        ] {
            assert_eq!(bar(part, whole, 5, false), text, "{part} of {whole}");
        }
        assert_eq!(bar(1, 2, 4, true), "██░░");
        assert_eq!(bar(1, 2, 0, true), "");
    }
}
