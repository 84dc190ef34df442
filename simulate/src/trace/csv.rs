//! Tables as CSV: a heading, then rows of plain fields. The traces read here quote nothing.

use std::collections::HashMap;

use super::ReadError;

/// A table whose columns are asked for by name.
pub(crate) struct Table<'a> {
    columns: HashMap<&'a str, usize>,
    rows: Vec<(usize, Vec<&'a str>)>,
}

/// One line of a table.
pub(crate) struct Row<'a, 'b> {
    table: &'b Table<'a>,
    /// Its line in the file, from 1.
    pub line: usize,
    fields: &'b [&'a str],
}

impl<'a> Table<'a> {
    /// Reads a table that must have these columns.
    pub fn read(text: &'a str, needed: &[&str]) -> Result<Self, ReadError> {
        let mut lines = text.lines().enumerate();
        let heading = lines.next().map_or("", |(_, line)| line.trim());
        let columns: HashMap<&str, usize> = heading
            .split(',')
            .enumerate()
            .map(|(i, name)| (name.trim(), i))
            .collect();
        if let Some(missing) = needed.iter().find(|name| !columns.contains_key(*name)) {
            return Err(ReadError::new(
                1,
                format!("no column {missing}"),
                format!("a heading with {}", needed.join(",")),
            ));
        }
        let mut rows = Vec::new();
        for (at, line) in lines {
            if line.trim().is_empty() {
                continue;
            }
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            if fields.len() != columns.len() {
                return Err(ReadError::new(
                    at + 1,
                    format!("{} fields", fields.len()),
                    format!("{}", columns.len()),
                ));
            }
            rows.push((at + 1, fields));
        }
        Ok(Table { columns, rows })
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = Row<'a, '_>> {
        self.rows.iter().map(move |(line, fields)| Row {
            table: self,
            line: *line,
            fields,
        })
    }
}

impl<'a> Row<'a, '_> {
    /// A field, empty when there is no such column.
    pub fn text(&self, column: &str) -> &'a str {
        let at = self.table.columns.get(column);
        at.and_then(|at| self.fields.get(*at))
            .copied()
            .unwrap_or("")
    }

    /// A number, `None` when the field is empty.
    pub fn number(&self, column: &str) -> Result<Option<i64>, ReadError> {
        let text = self.text(column);
        if text.is_empty() {
            return Ok(None);
        }
        // Some of these tables write whole numbers as 12.0.
        let number = text.parse::<i64>().ok().or_else(|| {
            let x = text.parse::<f64>().ok()?;
            (x.abs() < 9e15).then_some(x as i64)
        });
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(ReadError::new(
                self.line,
                format!("{column} \"{}\"", text.chars().take(40).collect::<String>()),
                "a whole number",
            )),
        }
    }
}
