//! `-o custom-columns=HEADER:PATH,...`.

use serde_json::Value;

use super::jsonpath::{self, Path};
use super::table::{Row, Table};
use crate::error::{CliError, Result};

/// Parsed columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    columns: Vec<(String, Path)>,
}

impl Columns {
    /// Reads `HEADER:PATH,HEADER:PATH`; commas inside brackets belong to the path.
    pub fn parse(text: &str) -> Result<Columns> {
        let mut columns = Vec::new();
        for part in split(text) {
            let Some((header, path)) = part.split_once(':') else {
                return Err(CliError::new(
                    format!("custom column {part:?} has no path"),
                    "write -o custom-columns=NAME:.metadata.name,PHASE:.status.phase",
                ));
            };
            columns.push((header.trim().to_string(), Path::parse(path)?));
        }
        Ok(Columns { columns })
    }

    /// The objects as a table.
    pub fn table(&self, items: &[Value]) -> Table {
        let cell = |item: &Value, path: &Path| {
            let found: Vec<String> = path.find(item).into_iter().map(jsonpath::show).collect();
            if found.is_empty() {
                "<none>".to_string()
            } else {
                found.join(",")
            }
        };
        Table {
            header: self.columns.iter().map(|(h, _)| h.clone()).collect(),
            rows: items
                .iter()
                .map(|item| Row {
                    cells: self.columns.iter().map(|(_, p)| cell(item, p)).collect(),
                    ..Row::default()
                })
                .collect(),
        }
    }

    /// The objects as aligned text.
    pub fn render(&self, items: &[Value], header: bool) -> String {
        self.table(items).render(header, false)
    }
}

fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0i32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_paths_and_absent_values_are_marked() {
        let c = Columns::parse("NAME:.metadata.name,N:status.n,BOTH:.l[0,1]").unwrap();
        let items = [
            json!({"metadata": {"name": "a"}, "status": {"n": 1}, "l": ["x", "y"]}),
            json!({"metadata": {"name": "long"}}),
        ];
        assert_eq!(
            c.render(&items, true),
            "NAME   N        BOTH\na      1        x,y\nlong   <none>   <none>\n"
        );
        assert!(Columns::parse("NAME").is_err());
        assert!(Columns::parse("A:.b[").is_err());
    }
}
