//! What a run found: figures beside their limits, printed as a table and kept for `BASELINE.md`. A run fails by a row that does not hold.

/// One run's table.
pub(crate) struct Findings {
    /// What ran, as a heading.
    pub title: String,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    figure: String,
    limit: String,
    holds: bool,
}

impl Findings {
    /// An empty table.
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), rows: Vec::new() }
    }

    /// A figure without a limit.
    pub(crate) fn note(&mut self, what: impl Into<String>, figure: impl Into<String>) {
        self.rows.push(Row { what: what.into(), figure: figure.into(), limit: String::new(), holds: true });
    }

    /// A figure that must not pass a limit.
    pub(crate) fn at_most(&mut self, what: impl Into<String>, figure: f64, limit: f64, unit: &str) {
        let (told, limit_told) = (format!("{figure:.2} {unit}"), format!("<= {limit} {unit}"));
        self.rows.push(Row { what: what.into(), figure: told.trim().into(), limit: limit_told.trim().into(), holds: figure <= limit });
    }

    /// A figure that must be what it must be.
    pub(crate) fn exactly(&mut self, what: impl Into<String>, found: u64, wanted: u64) {
        self.rows.push(Row { what: what.into(), figure: found.to_string(), limit: format!("= {wanted}"), holds: found == wanted });
    }

    /// A figure that must be no less than a limit.
    pub(crate) fn at_least(&mut self, what: impl Into<String>, figure: f64, limit: f64, unit: &str) {
        let (told, limit_told) = (format!("{figure:.2} {unit}"), format!(">= {limit} {unit}"));
        self.rows.push(Row { what: what.into(), figure: told.trim().into(), limit: limit_told.trim().into(), holds: figure >= limit });
    }

    /// Whether every row holds.
    pub(crate) fn hold(&self) -> bool {
        self.rows.iter().all(|row| row.holds)
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n| what | figure | limit | |\n|---|---|---|---|\n", self.title);
        for Row { what, figure, limit, holds } in &self.rows {
            let verdict = match (limit.is_empty(), holds) {
                (true, _) => "",
                (false, true) => "holds",
                (false, false) => "**missed**",
            };
            text.push_str(&format!("| {what} | {figure} | {limit} | {verdict} |\n"));
        }
        text
    }
}
