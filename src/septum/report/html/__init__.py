"""One run as one self-contained page: verdict, interactive ladder, memory map, charts."""

from septum.report.html.page import PageData, page_html, write_page

__all__ = ["PageData", "page_html", "write_page"]
