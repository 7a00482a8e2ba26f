"""What KV policies keep: acceptance of a draft that reads a part of the cache, over context, over what was generated, of a needle."""
