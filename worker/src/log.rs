//! The log: text for people or JSON for machines on standard error, and, where the program was built with
//! `otel`, traces for an OpenTelemetry collector.
//!
//! `RUST_LOG` says which lines there are. Traces go out when `OTEL_EXPORTER_OTLP_ENDPOINT` or
//! `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` names a collector (OTLP over HTTP); the other `OTEL_*` variables
//! work as everywhere.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Begins to log. `levels`: which lines there are unless `RUST_LOG` says otherwise. `service`: what traces
/// call this program. Called once, in a program's `main`.
pub fn begin(levels: &str, format: LogFormat, service: &'static str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(levels));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(lines).with(traces(service)).init();
}

#[cfg(not(feature = "otel"))]
fn traces<S>(_: &'static str) -> Option<Box<dyn Layer<S> + Send + Sync>> {
    None
}

/// The layer that sends spans to a collector; `None` when none is named.
#[cfg(feature = "otel")]
fn traces<S>(service: &'static str) -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span> + Send + Sync,
{
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    let named = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    named.iter().find_map(std::env::var_os)?;
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build();
    let exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => {
            // The log does not stand yet.
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "warning: no traces are sent: {error}");
            return None;
        }
    };
    let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| service.to_owned());
    let resource = Resource::builder().with_service_name(name).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("gigasmith");
    opentelemetry::global::set_tracer_provider(provider.clone());
    *PROVIDER.lock().expect("no holder panics") = Some(provider);
    let filter = EnvFilter::new("gigasmith_coordinator=debug,gigasmith_worker=debug");
    Some(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(filter).boxed())
}

#[cfg(feature = "otel")]
static PROVIDER: std::sync::Mutex<Option<opentelemetry_sdk::trace::SdkTracerProvider>> =
    std::sync::Mutex::new(None);

/// Sends what is left. Called once, at the end of `main`; may take some seconds.
pub fn end() {
    #[cfg(feature = "otel")]
    if let Some(provider) = PROVIDER.lock().expect("no holder panics").take() {
        // What cannot be sent now is lost: nobody is left to hear of it.
        let _ = provider.shutdown();
    }
}
