//! Numbers in few characters.

/// `n` in at most five characters: `999`, `1.2k`, `34k`, `5.6M`. Cut, not rounded.
pub fn count(n: u64) -> String {
    let unit = [(1_000_000_000, 'G'), (1_000_000, 'M'), (1000, 'k')]
        .into_iter()
        .find(|(unit, _)| n >= *unit);
    match unit {
        None => n.to_string(),
        Some((unit, letter)) if n < unit * 10 => {
            format!("{}.{}{letter}", n / unit, n % unit * 10 / unit)
        }
        Some((unit, letter)) => format!("{}{letter}", n / unit),
    }
}

/// A time of `us` microseconds in at most seven characters.
pub fn latency(us: u64, unicode: bool) -> String {
    let tenth = |n: u64, unit: u64| format!("{}.{}", n / unit, n % unit * 10 / unit);
    match us {
        0..1000 if unicode => format!("{us} µs"),
        0..1000 => format!("{us} us"),
        1000..10_000 => format!("{} ms", tenth(us, 1000)),
        10_000..1_000_000 => format!("{} ms", us / 1000),
        1_000_000..10_000_000 => format!("{} s", tenth(us, 1_000_000)),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// A character for each value, the taller the larger; `highest` is the tallest. A blank stands
/// for no value.
pub fn spark(values: &[Option<u64>], highest: u64, unicode: bool) -> String {
    let signs = if unicode {
        ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
    } else {
        ['_', '.', '-', '=', '+', 'o', '%', '#']
    };
    let last = signs.len() - 1;
    let sign = |value: u64| {
        let place = u128::from(value) * last as u128 / u128::from(highest.max(1));
        let place = usize::try_from(place).unwrap_or(last).min(last);
        signs.get(place).copied().unwrap_or(' ')
    };
    let shown = values.iter().map(|value| value.map_or(' ', sign));
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_latencies_take_little_room() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (9_999, "9.9k"),
            (34_567, "34k"),
            (5_600_000, "5.6M"),
            (123_000_000_000, "123G"),
        ] {
            assert_eq!(count(n), text);
        }
        for (us, text) in [
            (0, "0 µs"),
            (812, "812 µs"),
            (1_250, "1.2 ms"),
            (45_900, "45 ms"),
            (1_500_000, "1.5 s"),
            (61_000_000, "61 s"),
        ] {
            assert_eq!(latency(us, true), text);
        }
        assert_eq!(latency(812, false), "812 us");
    }

    #[test]
    fn a_sparkline_has_a_character_for_each_interval() {
        let values = [Some(0), None, Some(50), Some(100), Some(u64::MAX)];
        assert_eq!(spark(&values, 100, true), "▁ ▄██");
        assert_eq!(spark(&values, 100, false), "_ =##");
        assert_eq!(spark(&[Some(0)], 0, true), "▁");
    }
}
