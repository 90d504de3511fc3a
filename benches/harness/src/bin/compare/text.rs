//! Figures and tables as Markdown.

/// Three digits, with commas between thousands.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    match value.abs() {
        large if large >= 999.5 => thousands(value.round()),
        middle if middle >= 99.95 => format!("{value:.0}"),
        middle if middle >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A whole number, with commas between thousands.
pub fn whole(value: f64) -> String {
    thousands(value.round() + 0.0)
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let groups = digits.as_bytes()[first..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let head = (first > 0).then(|| digits[..first].to_owned());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// A table whose first column is text and whose others are figures, unless their heading ends with a blank.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let align = head.iter().enumerate().map(|(i, name)| if i == 0 || name.ends_with(' ') { "---" } else { "--:" });
    let mut text = line(&mut head.iter().map(|name| name.trim_end()));
    text.push_str(&line(&mut align.into_iter()));
    rows.iter().for_each(|row| text.push_str(&line(&mut row.iter().map(String::as_str))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let all = [0.1234, 9.999, 12.34, 99.96, 123.4, 999.6, 1234.0, 123_456.7, 1_234_567.0, f64::NAN, 0.0];
        let wanted = ["0.12", "10.0", "12.3", "100", "123", "1,000", "1,234", "123,457", "1,234,567", "-", "0.00"];
        assert_eq!(all.map(figure), wanted);
    }

    #[test]
    fn whole_numbers_have_no_decimals() {
        assert_eq!([0.0, 5.0, 50.2, 1000.0].map(whole), ["0", "5", "50", "1,000"]);
    }

    #[test]
    fn a_table_has_a_line_for_its_head_its_alignment_and_each_row() {
        let text = table(&["case", "a", "who "], &[vec!["x".into(), "1".into(), "y".into()]]);
        assert_eq!(text, "| case | a | who |\n| --- | --: | --- |\n| x | 1 | y |\n");
    }
}
