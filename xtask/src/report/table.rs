//! Tables, as Markdown and as HTML.

/// Cells by row; the first column is the row's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<H: Into<String>>(head: impl IntoIterator<Item = H>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, which has as many cells as the head.
    pub(super) fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.head.len(), "{cells:?}");
        self.rows.push(cells);
    }

    /// The table if it has rows.
    pub(super) fn filled(&self) -> Option<&Self> {
        (!self.rows.is_empty()).then_some(self)
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            // Not two blanks where there is nothing.
            let cells: Vec<String> = cells
                .iter()
                .map(|cell| {
                    if cell.is_empty() {
                        " ".into()
                    } else {
                        format!(" {cell} ")
                    }
                })
                .collect();
            format!("|{}|\n", cells.join("|"))
        };
        let rule = format!("|{}\n", "---|".repeat(self.head.len()));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.head) + &rule + &rows
    }

    pub(super) fn html(&self) -> String {
        let line = |cells: &[String], tag: &str| {
            let cells = cells
                .iter()
                .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(|row| line(row, "td") + "\n").collect();
        format!(
            "<div class=\"scroll\" tabindex=\"0\"><table><thead>{}</thead><tbody>\n{rows}</tbody></table></div>",
            line(&self.head, "th")
        )
    }
}

/// `text` as it has to be written in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// `value`, written by `write`, or a dash.
pub(super) fn or_dash<T>(value: Option<T>, write: impl FnOnce(T) -> String) -> String {
    value.map_or("-".to_owned(), write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_the_same_as_markdown_and_as_html() {
        let mut table = Table::new(["a", "b"]);
        table.row(["x < y", ""]);
        assert_eq!(table.markdown(), "| a | b |\n|---|---|\n| x < y | |\n");
        let html = table.html();
        assert!(html.contains("<tr><th>a</th><th>b</th></tr>"), "{html}");
        assert!(
            html.contains("<tr><td>x &lt; y</td><td></td></tr>"),
            "{html}"
        );
    }
}
