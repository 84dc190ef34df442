//! `rota get`: objects as a table made by the server, or whole in another format; `-w` follows changes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::{ACCEPT_TABLE, Api, Failure, with_query};
use crate::context::Context;
use crate::discovery::Resource;
use crate::error::{CliError, EXIT_ERROR, Result};
use crate::output::jsonpath::Path;
use crate::output::table::{self, Row, Table, View};
use crate::output::{self, Format, quantity};
use crate::selector::{self, Target};
use crate::watch::{self, Selection, Watch};

/// Pause before a watch that ended is opened again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);

/// Flags of `rota get`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// KIND, KIND NAME ..., KIND,KIND, KIND/NAME ... or `all`
    #[arg(value_name = "KIND")]
    what: Vec<String>,
    /// wide, yaml, json, jsonl, csv, name, jsonpath=TEMPLATE or custom-columns=HEADER:PATH,...
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels, such as app=web,tier!=dev
    #[arg(short = 'l', long, value_name = "QUERY", default_value = "")]
    selector: String,
    /// Only objects with these field values, such as spec.nodeName=n1
    #[arg(long, value_name = "QUERY", default_value = "")]
    field_selector: String,
    /// Follow changes: on a terminal the table is redrawn, elsewhere changed rows are appended
    #[arg(short, long)]
    watch: bool,
    /// Follow changes without the list before them
    #[arg(long)]
    watch_only: bool,
    /// Order of rows: a path such as .metadata.creationTimestamp
    #[arg(long, value_name = "PATH")]
    sort_by: Option<String>,
    /// Without the header line
    #[arg(long)]
    no_headers: bool,
    /// A column with the labels
    #[arg(long)]
    show_labels: bool,
    /// No error for names that do not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Objects per request, 0 for all in one
    #[arg(long, value_name = "N", default_value_t = watch::PAGE)]
    chunk_size: usize,
    /// GET this path of the API and print the answer as it is
    #[arg(long, value_name = "PATH", conflicts_with = "what")]
    raw: Option<String>,
}

/// Runs it.
pub async fn run(args: Args, cx: &Context) -> Result<()> {
    if let Some(path) = &args.raw {
        return cx.print(&cx.api().await?.get_text(path).await?);
    }
    let format = Format::parse(args.output.as_deref())?;
    let sort = args.sort_by.as_deref().map(Path::parse).transpose()?;
    let targets = selector::targets(&args.what, &*cx.discovery().await?)?;
    let named = targets.iter().any(|t| !t.names.is_empty());
    if named && (!args.selector.is_empty() || !args.field_selector.is_empty()) {
        return Err(CliError::new(
            "names and selectors cannot be combined",
            "leave out the names, or -l and --field-selector",
        ));
    }
    if named && args.all_namespaces && targets.iter().any(|t| t.resource.namespaced) {
        return Err(CliError::new(
            "a name lives in one namespace; -A asks for all",
            "leave out the name, or name the namespace with -n",
        ));
    }
    let get = Get {
        api: cx.api().await?,
        namespace: cx.namespace().await?,
        many: targets.len() > 1,
        args: &args,
        format,
        sort,
        cx,
    };
    if args.watch || args.watch_only {
        let [target] = targets.as_slice() else {
            return Err(CliError::new("only one kind can be watched at a time", "run one `rota get -w` per kind"));
        };
        if target.names.len() > 1 {
            return Err(CliError::new("only one name can be watched at a time", "use -l to watch several objects"));
        }
        return get.watch(target).await;
    }
    if get.format.needs_objects() {
        get.objects(&targets).await
    } else {
        get.tables(&targets).await
    }
}

struct Get<'a> {
    api: &'a Api,
    namespace: String,
    many: bool,
    args: &'a Args,
    format: Format,
    sort: Option<Path>,
    cx: &'a Context,
}

impl Get<'_> {
    fn scope(&self, resource: &Resource) -> Option<&str> {
        (resource.namespaced && !self.args.all_namespaces).then_some(self.namespace.as_str())
    }

    fn selection(&self) -> Selection {
        Selection {
            labels: self.args.selector.clone(),
            fields: self.args.field_selector.clone(),
        }
    }

    fn view(&self, resource: &Resource) -> View {
        View {
            wide: matches!(self.format, Format::Table { wide: true }),
            namespace: self.args.all_namespaces && resource.namespaced,
            labels: self.args.show_labels,
            prefix: if self.many { resource.label() } else { String::new() },
        }
    }

    fn accept_path(&self, path: String) -> String {
        // Sorting needs the objects, which tables otherwise leave out.
        if self.sort.is_some() {
            with_query(&path, &[("includeObject", "Object".into())])
        } else {
            path
        }
    }

    /// One answer per name or page; failures of single names are told and counted.
    async fn fetch(&self, target: &Target, accept: &str, failed: &mut bool) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        if target.names.is_empty() {
            let path = self.accept_path(target.resource.collection(self.scope(&target.resource)));
            return Ok(watch::pages(self.api, &path, &self.selection(), accept, self.args.chunk_size).await?);
        }
        for name in &target.names {
            let path = self.accept_path(target.resource.object(&self.namespace, name));
            match self.api.get_as(&path, accept).await {
                Ok(v) => out.push(v),
                Err(e) if e.is_not_found() && self.args.ignore_not_found => {}
                Err(e @ Failure::Status { .. }) => {
                    self.cx.report(&e.into());
                    *failed = true;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out)
    }

    async fn objects(&self, targets: &[Target]) -> Result<()> {
        let mut failed = false;
        let mut items = Vec::new();
        for target in targets {
            for mut answer in self.fetch(target, "application/json", &mut failed).await? {
                match answer.get_mut("items").map(Value::take) {
                    Some(Value::Array(list)) if target.names.is_empty() => {
                        for mut item in list {
                            item["kind"] = target.resource.kind.clone().into();
                            item["apiVersion"] = target.resource.api_version().into();
                            items.push(item);
                        }
                    }
                    _ => items.push(answer),
                }
            }
        }
        if let Some(path) = &self.sort {
            items.sort_by(|a, b| by_path(path, a, b));
        }
        let asked: usize = targets.iter().map(|t| t.names.len()).sum();
        let single = asked == 1 && targets.len() == 1;
        if !(single && items.is_empty()) {
            let text = match &self.format {
                Format::Custom(c) => c.render(&items, !self.args.no_headers),
                f => output::objects(f, items, single)?,
            };
            self.cx.print(&text)?;
        }
        if failed { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
    }

    async fn tables(&self, targets: &[Target]) -> Result<()> {
        let mut failed = false;
        let mut printed = false;
        let now = Timestamp::now();
        for target in targets {
            let answers = self.fetch(target, ACCEPT_TABLE, &mut failed).await?;
            let view = self.view(&target.resource);
            let mut table = Table::default();
            for answer in &answers {
                let columns = answers.first().map(|a| &a["columnDefinitions"]);
                let page = table::from_server(answer, columns, &view, now);
                if table.header.is_empty() {
                    table.header = page.header;
                }
                table.rows.extend(page.rows);
            }
            if table.rows.is_empty() {
                continue;
            }
            if let Some(path) = &self.sort {
                table.rows.sort_by(|a, b| by_path(path, &a.object, &b.object));
            }
            if printed {
                self.cx.print("\n")?;
            }
            printed = true;
            self.cx.print(&self.render(&table))?;
        }
        if !printed && !failed && !self.args.ignore_not_found {
            self.cx.say(&match targets.iter().all(|t| self.scope(&t.resource).is_some()) {
                true => format!("No resources found in {} namespace.", self.namespace),
                false => "No resources found.".to_string(),
            });
        }
        if failed { Err(CliError::exit(EXIT_ERROR)) } else { Ok(()) }
    }

    fn render(&self, table: &Table) -> String {
        let header = !self.args.no_headers;
        match self.format {
            Format::Csv => table.csv(header),
            _ => table.render(header, self.cx.color()),
        }
    }

    async fn watch(&self, target: &Target) -> Result<()> {
        let resource = &target.resource;
        let path = self.accept_path(resource.collection(self.scope(resource)));
        let selection = match target.names.first() {
            Some(name) => Selection::name(name),
            None => self.selection(),
        };
        let accept = if self.format.needs_objects() {
            "application/json"
        } else {
            ACCEPT_TABLE
        };
        let mut screen = Screen::new(self.cx.out_tty && !self.format.needs_objects());
        let mut first = true;
        loop {
            // A watch that expired starts over with a list; rows that did not change are not repeated.
            let answers = watch::pages(self.api, &path, &selection, accept, self.args.chunk_size).await?;
            let quiet = first && self.args.watch_only;
            let columns = answers.first().map(|a| a["columnDefinitions"].clone()).unwrap_or_default();
            let mut version = String::new();
            screen.begin_list();
            for answer in &answers {
                version = answer["metadata"]["resourceVersion"].as_str().unwrap_or("").to_string();
                self.show(answer, &columns, resource, false, quiet, &mut screen)?;
            }
            let gone = screen.end_list();
            screen.draw(self, gone)?;
            if first && target.names.len() == 1 && screen.rows.is_empty() {
                // The name may not exist yet: get says so, as without -w.
                self.api.get(&resource.object(&self.namespace, &target.names[0])).await?;
            }
            first = false;
            match Watch::open(self.api, &path, &selection, &version, accept).await {
                Ok(events) => self.follow(events, &columns, resource, &mut screen).await?,
                Err(e) => ended(e)?,
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    }

    /// Shows events until the server ends the watch.
    async fn follow(&self, mut events: Watch, columns: &Value, resource: &Resource, screen: &mut Screen) -> Result<()> {
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(e) => return ended(e),
            };
            if event.kind != "BOOKMARK" {
                let deleted = event.kind == "DELETED";
                self.show(&event.object, columns, resource, deleted, false, screen)?;
                screen.draw(self, deleted)?;
            }
        }
    }

    /// Takes an answer or event in: tables into the screen, objects straight out.
    fn show(&self, answer: &Value, columns: &Value, resource: &Resource, deleted: bool, quiet: bool, screen: &mut Screen) -> Result<()> {
        if self.format.needs_objects() {
            let items: Vec<Value> = match answer["items"].as_array() {
                Some(list) => list.clone(),
                None => vec![answer.clone()],
            };
            for mut item in items {
                item["kind"] = resource.kind.clone().into();
                item["apiVersion"] = resource.api_version().into();
                let row = Row {
                    namespace: item["metadata"]["namespace"].as_str().unwrap_or("").into(),
                    name: item["metadata"]["name"].as_str().unwrap_or("").into(),
                    version: item["metadata"]["resourceVersion"].as_str().unwrap_or("").into(),
                    ..Row::default()
                };
                if screen.take(row, deleted) && !quiet {
                    if matches!(self.format, Format::Yaml) {
                        self.cx.print("---\n")?;
                    }
                    let text = match &self.format {
                        Format::Custom(c) => c.render(&[item], std::mem::take(&mut screen.header_due)),
                        f => output::objects(f, vec![item], true)?,
                    };
                    self.cx.print(&text)?;
                }
            }
            return Ok(());
        }
        let table = table::from_server(answer, Some(columns), &self.view(resource), Timestamp::now());
        if screen.header.is_empty() {
            screen.header = table.header;
        }
        for row in table.rows {
            let shown = row.clone();
            if screen.take(row, deleted) && !quiet {
                screen.pending.push(shown);
            }
        }
        Ok(())
    }
}

/// What a watch has shown: one row per object.
struct Screen {
    redraw: bool,
    header: Vec<String>,
    header_due: bool,
    rows: BTreeMap<(String, String), Row>,
    before_list: BTreeMap<(String, String), Row>,
    pending: Vec<Row>,
    widths: Vec<usize>,
    /// Lines drawn last.
    drawn: usize,
}

impl Screen {
    fn new(redraw: bool) -> Self {
        Screen {
            redraw,
            header: Vec::new(),
            header_due: true,
            rows: BTreeMap::new(),
            before_list: BTreeMap::new(),
            pending: Vec::new(),
            widths: Vec::new(),
            drawn: 0,
        }
    }

    fn begin_list(&mut self) {
        self.before_list = std::mem::take(&mut self.rows);
    }

    /// True if rows have gone since the list before.
    fn end_list(&mut self) -> bool {
        let before = std::mem::take(&mut self.before_list);
        before.keys().any(|k| !self.rows.contains_key(k))
    }

    /// Remembers a row; false if it was shown in this version already.
    fn take(&mut self, row: Row, deleted: bool) -> bool {
        let key = (row.namespace.clone(), row.name.clone());
        if deleted {
            self.rows.remove(&key);
            return true;
        }
        let same = |have: Option<&Row>| have.is_some_and(|r| !r.version.is_empty() && r.version == row.version);
        let known = same(self.before_list.get(&key)) || same(self.rows.get(&key));
        self.rows.insert(key, row);
        !known
    }

    fn draw(&mut self, get: &Get<'_>, force: bool) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() && !force {
            return Ok(());
        }
        if self.redraw {
            let mut table = Table {
                header: self.header.clone(),
                rows: self.rows.values().cloned().collect(),
            };
            if let Some(path) = &get.sort {
                table.rows.sort_by(|a, b| by_path(path, &a.object, &b.object));
            }
            let text = get.render(&table);
            // Up to where the last drawing began, then clear to the end of the screen.
            let up = match self.drawn {
                0 => String::new(),
                n => format!("\x1b[{n}A\r\x1b[J"),
            };
            self.drawn = text.lines().count();
            return get.cx.print(&format!("{up}{text}"));
        }
        if matches!(get.format, Format::Csv) {
            let table = Table {
                header: self.header.clone(),
                rows: pending,
            };
            let header = std::mem::take(&mut self.header_due) && !get.args.no_headers;
            return get.cx.print(&table.csv(header));
        }
        // Columns only ever widen, so that appended rows stay readable.
        let all = std::iter::once(self.header.as_slice()).chain(pending.iter().map(|r| r.cells.as_slice()));
        let mut widths = table::widths(all);
        for (i, w) in widths.iter_mut().enumerate() {
            *w = (*w).max(self.widths.get(i).copied().unwrap_or(0));
        }
        self.widths = widths;
        let paint: &dyn Fn(&str) -> Option<&'static str> = match get.cx.color() {
            true => &table::paint_state,
            false => &table::no_paint,
        };
        let mut text = String::new();
        if std::mem::take(&mut self.header_due) && !get.args.no_headers {
            text.push_str(&table::line(&self.header, &self.widths, &table::no_paint));
        }
        for row in &pending {
            text.push_str(&table::line(&row.cells, &self.widths, paint));
        }
        get.cx.print(&text)
    }
}

/// A watch may expire or break off; it is then opened again after a new list.
fn ended(e: Failure) -> Result<()> {
    match e {
        Failure::Status { code: 410, .. } | Failure::Transport { .. } => Ok(()),
        e => Err(e.into()),
    }
}

fn by_path(path: &Path, a: &Value, b: &Value) -> Ordering {
    quantity::compare(path.find(a).first().copied(), path.find(b).first().copied())
}

/// The object with its kind, as lists leave it out.
pub fn with_kind(resource: &Resource, mut object: Value) -> Value {
    if object["kind"].is_null() {
        object["kind"] = json!(resource.kind);
        object["apiVersion"] = json!(resource.api_version());
    }
    object
}
