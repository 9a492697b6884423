"""How RocksDB is set up: bounded in memory, files and logs; written to by one thread."""

from __future__ import annotations

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options


def options() -> Options:
    made = Options(raw_mode=True)
    made.create_if_missing(True)
    # Small, because rows come in random order: inserting into 32 MiB cost 1.1 µs a row, into 4 MiB 0.6, most
    # of it cache misses, and it is the interpreter lock's time. The flushes are the background's.
    made.set_write_buffer_size(4 << 20)
    made.set_max_write_buffer_number(3)
    made.set_max_total_wal_size(128 << 20)
    made.set_max_open_files(2048)
    made.set_keep_log_file_num(4)
    made.set_max_log_file_size(4 << 20)
    made.set_compression_type(DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(Cache(64 << 20))
    table.set_cache_index_and_filter_blocks(True)  # bounded memory, however many tables
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    made.set_block_based_table_factory(table)
    return made
